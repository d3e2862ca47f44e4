//! What the environment says.
//!
//! | variable | meaning |
//! |---|---|
//! | `ADDRESS` | where to listen, such as 0.0.0.0 in a container; 127.0.0.1 by default |
//! | `PORT` | the port; 0 takes any free one |
//! | `DATA_PATH` | the folder of the notebook; made when there is none |
//! | `TENANT` | whose notebook it is; shown |
//! | `PRODUCT_VERSION` | shown |
//! | `GREETING` | shown above the pages; optional |
//! | `PRODUCT_FAULT` | for demonstrations and tests: `exit` stops at once, `never-listen` runs without a port, `unhealthy` answers 503 at `/healthz`, `other-port` listens elsewhere |

use std::{
    ffi::OsString,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where to listen.
    pub(crate) address: IpAddr,
    /// The port there.
    pub(crate) port: u16,
    /// The folder of the notebook.
    pub(crate) data_path: PathBuf,
    /// Whose notebook it is.
    pub(crate) tenant: String,
    /// Which version claims to run.
    pub(crate) version: String,
    /// Words above the pages.
    pub(crate) greeting: Option<String>,
    /// How to misbehave.
    pub(crate) fault: Option<Fault>,
}

/// How to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Stops at once.
    Exit,
    /// Runs, and never listens.
    NeverListen,
    /// Answers, and says that it is not well.
    Unhealthy,
    /// Listens on another port than it was told.
    OtherPort,
}

/// A variable that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    /// It is not set, or empty.
    #[error("{name} is not set: expected {expected}")]
    Missing {
        /// Which.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// It is set to something else than it should be.
    #[error("{name} is {value:?}: expected {expected}")]
    Invalid {
        /// Which.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl Config {
    /// Reads and checks every variable.
    pub(crate) fn from_environment(read: impl Fn(&'static str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let required = |name, expected| {
            read(name).filter(|value| !value.is_empty()).ok_or(ConfigError::Missing { name, expected })
        };
        let text = |name, expected| text(name, required(name, expected)?, expected);

        let optional = |name| read(name).filter(|value| !value.is_empty());
        const ADDRESS: &str = "an address of this machine, such as 127.0.0.1 or 0.0.0.0";
        let address = match optional("ADDRESS") {
            None => Ipv4Addr::LOCALHOST.into(),
            Some(value) => {
                let value = self::text("ADDRESS", value, ADDRESS)?;
                value.parse().map_err(|_| ConfigError::Invalid { name: "ADDRESS", value, expected: ADDRESS })?
            }
        };
        const PORT: &str = "a port on this machine, 0 to 65535";
        let port = text("PORT", PORT)?;
        let port = port.parse().map_err(|_| ConfigError::Invalid { name: "PORT", value: port, expected: PORT })?;
        const DATA_PATH: &str = "a folder that exists or can be made";
        let data_path = PathBuf::from(required("DATA_PATH", DATA_PATH)?);
        if let Err(error) = std::fs::create_dir_all(&data_path) {
            let value = format!("{} ({error})", data_path.display());
            return Err(ConfigError::Invalid { name: "DATA_PATH", value, expected: DATA_PATH });
        }
        let tenant = text("TENANT", "whose notebook this is")?;
        let version = text("PRODUCT_VERSION", "a version, such as 1.0")?;
        let greeting = optional("GREETING").map(|value| self::text("GREETING", value, "text")).transpose()?;
        let fault = optional("PRODUCT_FAULT").map(Fault::read).transpose()?;
        Ok(Self { address, port, data_path, tenant, version, greeting, fault })
    }
}

impl Fault {
    fn read(value: OsString) -> Result<Self, ConfigError> {
        match value.to_str() {
            Some("exit") => Ok(Self::Exit),
            Some("never-listen") => Ok(Self::NeverListen),
            Some("unhealthy") => Ok(Self::Unhealthy),
            Some("other-port") => Ok(Self::OtherPort),
            _ => Err(ConfigError::Invalid {
                name: "PRODUCT_FAULT",
                value: value.to_string_lossy().into_owned(),
                expected: "exit, never-listen, unhealthy or other-port",
            }),
        }
    }
}

fn text(name: &'static str, value: OsString, expected: &'static str) -> Result<String, ConfigError> {
    value.into_string().map_err(|value| ConfigError::Invalid {
        name,
        value: value.to_string_lossy().into_owned(),
        expected,
    })
}

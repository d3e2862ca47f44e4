//! What the command line says.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Parser, ValueEnum};

/// A signup service: every customer who signs up gets an own instance of the product.
#[derive(Debug, Parser)]
#[command(name = "signup", version, args_override_self = true)]
pub(crate) struct Args {
    /// Where to answer. A loopback address: there is no login. Port 0 takes any free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080", value_parser = loopback)]
    pub(crate) listen: SocketAddr,
    /// The folder of the store and of the instances.
    #[arg(long, value_name = "DIR", default_value = ".signup")]
    pub(crate) state: PathBuf,
    /// Where instances live.
    #[arg(long, value_enum, default_value_t = BackendKind::Process)]
    pub(crate) backend: BackendKind,
    /// The product's binary. Without it, the product is built first.
    #[arg(long, value_name = "PATH")]
    pub(crate) product: Option<PathBuf>,
    /// Offers two versions of the product that do not work, to see what happens then.
    #[arg(long)]
    pub(crate) demo_faults: bool,
    /// How long a move may take, retries included, before the engine gives up. For tests.
    #[arg(long, hide = true, value_name = "SECONDS")]
    pub(crate) move_deadline_seconds: Option<u64>,
    /// Kills the process at this numbered place of the engine; 0 only counts. For crash tests.
    #[arg(long, hide = true, value_name = "NUMBER", env = "SIGNUP_KILL_AT")]
    pub(crate) kill_at: Option<u64>,
}

/// Where instances live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendKind {
    /// Each is a process on this machine.
    Process,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => Err("expected a loopback address, such as 127.0.0.1:8080: this example has no login".into()),
        Err(_) => Err("expected an address and a port, such as 127.0.0.1:8080".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn only_loopback_addresses_are_listened_on() {
        assert!(loopback("127.0.0.1:0").is_ok() && loopback("[::1]:80").is_ok());
        assert!(loopback("0.0.0.0:8080").unwrap_err().contains("no login"));
        assert!(loopback("8080").unwrap_err().contains("a port"));
    }
}

//! Where the database is, and how long anything of it may take.

use std::{fmt, str::FromStr, time::Duration};

use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::{super::StoreError, tls::Trust};

/// How long a transaction may wait for the process that began it: others wait for what it has locked.
const IDLE_IN_TRANSACTION_MAX: Duration = Duration::from_secs(5);

const EXPECTED: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE, with parameters of libpq behind a ?, each as NAME=VALUE; \
     in a name or password, characters such as @ : / ? # % are written as %40 and so on";

/// Where a [`PostgresStore`](super::PostgresStore) is, and its limits.
///
/// Its `Debug` hides the password.
#[derive(Clone)]
pub struct PostgresConfig {
    /// To each host, in the order of the URL.
    pub(super) connections: Vec<tokio_postgres::Config>,
    pub(super) trust: Trust,
    pub(super) schema: Schema,
    pub(super) pool_size: usize,
    pub(super) lapses_after: Duration,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) later_steps: &'static [&'static [&'static str]],
}

impl PostgresConfig {
    /// Reads a URL as [libpq does](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS):
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?NAME=VALUE&…`, with several hosts where there are standbys; the one that
    /// takes writes is used.
    ///
    /// Parameters: those that `tokio-postgres` knows, and
    /// - `sslmode`: `disable`, `prefer` (if none is given), `require`, `verify-ca` or `verify-full`
    ///   ([their meaning](https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION)). What `verify-*` trusts
    ///   is `sslrootcert`, or what the system trusts. Certificates of clients are not supported;
    /// - `sslrootcert`: a file of certificates in PEM, or `system`;
    /// - `schema`: as [`with_schema`](Self::with_schema).
    ///
    /// # Errors
    /// [`StoreError::Refused`] saying what was expected. It never quotes the URL, which may hold a password.
    pub fn from_url(url: &str) -> Result<Self, StoreError> {
        let is_ours = ["postgres://", "postgresql://"].iter().any(|prefix| url.starts_with(prefix));
        let refused = || StoreError::Refused(format!("the database's URL cannot be read: expected {EXPECTED}"));
        if !is_ours {
            return Err(refused());
        }
        let (places, parameters) = url.split_once('?').unwrap_or((url, ""));
        let (mut own, mut rest) = (Own::default(), Vec::new());
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').ok_or_else(refused)?;
            match name {
                "sslmode" => own.mode = Some(value),
                "sslrootcert" => own.roots = Some(unescape(value).ok_or_else(refused)?),
                "schema" => own.schema = Some(value),
                "sslcert" | "sslkey" => {
                    let why = format!(
                        "{name} of the database's URL: expected none, as certificates of clients are not supported"
                    );
                    return Err(StoreError::Refused(why));
                }
                _ => rest.push(parameter),
            }
        }
        let (mode, trust) = Trust::from_parameters(own.mode.unwrap_or("prefer"), own.roots.as_deref())?;
        let connection = |place: String| {
            let read = tokio_postgres::Config::from_str(&format!("{place}?{}", rest.join("&")));
            let mut connection = read.map_err(|_| refused())?;
            connection.ssl_mode(mode);
            let has_host = !(connection.get_hosts().is_empty() && connection.get_hostaddrs().is_empty());
            if has_host { Ok(connection) } else { Err(refused()) }
        };
        let places = each_host(places);
        if rest.iter().any(|parameter| parameter.starts_with("host=") && (parameter.contains(',') || places.len() > 1))
        {
            let why =
                "host of the database's URL: expected several hosts before the database's name, as in one,two/DATABASE";
            return Err(StoreError::Refused(why.into()));
        }
        if places.len() > 1 && rest.iter().any(|parameter| parameter.starts_with("hostaddr=")) {
            let why =
                "hostaddr of the database's URL: expected none with several hosts, which may be addresses themselves";
            return Err(StoreError::Refused(why.into()));
        }
        let connections = places.into_iter().map(connection).collect::<Result<Vec<_>, _>>()?;
        let connect_timeout = connections.iter().find_map(tokio_postgres::Config::get_connect_timeout);
        let connect_timeout = connect_timeout.copied().unwrap_or(Duration::from_secs(5));
        let config = Self {
            connections,
            trust,
            schema: Schema("provisioner".into()),
            pool_size: 8,
            lapses_after: Duration::from_secs(15),
            timeout: Duration::from_secs(10),
            connect_timeout,
            later_steps: &[],
        };
        own.schema.map_or(Ok(config.clone()), |schema| config.with_schema(schema))
    }

    /// The schema that holds the tables: `provisioner` unless told otherwise. It is made when there is none.
    ///
    /// # Errors
    /// [`StoreError::Refused`] unless it is 1 to 41 characters of `a-z`, `0-9` and `_`, not starting with a digit.
    pub fn with_schema(self, schema: &str) -> Result<Self, StoreError> {
        Ok(Self { schema: schema.parse()?, ..self })
    }

    /// How many connections reads may use: 8 unless told otherwise. Three more are used for writing, for listening and for the
    /// session.
    ///
    /// # Errors
    /// [`StoreError::Refused`] unless it is 1 to 1,000.
    pub fn with_pool_size(self, connections: usize) -> Result<Self, StoreError> {
        match connections {
            1..=1000 => Ok(Self { pool_size: connections, ..self }),
            _ => Err(StoreError::Refused(format!("a pool of {connections} connections: expected 1 to 1000"))),
        }
    }

    /// After how much silence a session lapses: 15 s unless told otherwise. Processes that share a database should agree.
    ///
    /// # Errors
    /// [`StoreError::Refused`] unless it is 100 ms to 10 min.
    pub fn with_lapses_after(self, silence: Duration) -> Result<Self, StoreError> {
        within("sessions that lapse after", silence, Duration::from_millis(100), Duration::from_secs(600))?;
        Ok(Self { lapses_after: silence, ..self })
    }

    /// How long one transaction or read may take: 10 s unless told otherwise. A commit that was cut off after it was sent is
    /// asked about for as long again.
    ///
    /// # Errors
    /// [`StoreError::Refused`] unless it is 100 ms to 10 min.
    pub fn with_timeout(self, timeout: Duration) -> Result<Self, StoreError> {
        within("a timeout of", timeout, Duration::from_millis(100), Duration::from_secs(600))?;
        Ok(Self { timeout, ..self })
    }

    /// How long making a connection to one host may take: 5 s unless told otherwise, of which one of its addresses has half. Where there are several, the next one is tried
    /// soon after, beside it.
    ///
    /// # Errors
    /// [`StoreError::Refused`] unless it is 100 ms to 10 min.
    pub fn with_connect_timeout(self, timeout: Duration) -> Result<Self, StoreError> {
        within("a connect timeout of", timeout, Duration::from_millis(100), Duration::from_secs(600))?;
        Ok(Self { connect_timeout: timeout, ..self })
    }

    /// The same as a later release has it: with these steps of the schema behind those of this one, each some texts of SQL. For tests of
    /// upgrades: from then on the schema is that release's.
    #[doc(hidden)]
    #[must_use]
    pub fn with_later_steps(self, later_steps: &'static [&'static [&'static str]]) -> Self {
        Self { later_steps, ..self }
    }

    /// What connections to each host are made with.
    pub(super) fn connections(&self) -> Vec<tokio_postgres::Config> {
        self.connections.iter().map(|connection| self.with_settings(connection.clone())).collect()
    }

    /// With those of a session's settings that the store relies on.
    fn with_settings(&self, mut connection: tokio_postgres::Config) -> tokio_postgres::Config {
        let timeout = self.timeout.as_millis();
        let idle = self.timeout.min(IDLE_IN_TRANSACTION_MAX).as_millis();
        // Every statement here is a walk along an index. The planner may have seen the tables while they were empty, and keeps
        // its plans: it is not given another way. https://www.postgresql.org/docs/current/runtime-config-query.html
        //
        // A process that was stopped in the middle of a transaction must not keep the others waiting, nor one that takes no answer any
        // more: while the server sends, no statement runs into its time. A vanished host's connections are noticed as lost.
        // https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-TCP-USER-TIMEOUT
        let settings = format!(
            "-c search_path={schema} -c statement_timeout={timeout} -c idle_in_transaction_session_timeout={idle} \
             -c default_transaction_isolation=read\\ committed -c client_min_messages=warning -c jit=off \
             -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off \
             -c tcp_user_timeout={timeout} -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
            schema = self.schema.quoted()
        );
        let settings = match connection.get_options() {
            Some(given) => format!("{given} {settings}"),
            None => settings,
        };
        // A host's name may have a second address, behind one that is silent.
        connection.options(settings).connect_timeout(self.connect_timeout / 2).tcp_user_timeout(self.timeout);
        connection.keepalives(true).keepalives_idle(Duration::from_secs(10));
        connection.keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
        if connection.get_application_name().is_none() {
            connection.application_name("provisioner");
        }
        if connection.get_target_session_attrs() == TargetSessionAttrs::Any {
            connection.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        connection
    }
}

/// The URL of each of several hosts, without parameters.
fn each_host(places: &str) -> Vec<String> {
    let (scheme, rest) = places.split_once("://").unwrap_or(("postgres", places));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (user, hosts) = authority.rsplit_once('@').map_or(("", authority), |(user, hosts)| (user, hosts));
    let user = if user.is_empty() { String::new() } else { format!("{user}@") };
    hosts.split(',').map(|host| format!("{scheme}://{user}{host}{path}")).collect()
}

/// The parameters that are not left to `tokio-postgres`.
#[derive(Default)]
struct Own<'a> {
    mode: Option<&'a str>,
    roots: Option<String>,
    schema: Option<&'a str>,
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
        };
        let (all, first) = (self.connections.iter(), self.connections.first());
        f.debug_struct("PostgresConfig")
            .field("hosts", &all.flat_map(|one| one.get_hosts().iter().map(host)).collect::<Vec<_>>())
            .field("ports", &self.connections.iter().flat_map(|one| one.get_ports()).collect::<Vec<_>>())
            .field("database", &first.and_then(|one| one.get_dbname()))
            .field("user", &first.and_then(|one| one.get_user()))
            .field("tls", &first.is_some_and(|one| one.get_ssl_mode() != SslMode::Disable))
            .field("trust", &self.trust)
            .field("schema", &self.schema)
            .field("pool_size", &self.pool_size)
            .field("lapses_after", &self.lapses_after)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish()
    }
}

/// The name of a schema that can be written anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schema(String);

impl Schema {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// In quotes: a name may be a word of SQL.
    pub(super) fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Schema {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let first = |b: u8| b.is_ascii_lowercase() || b == b'_';
        let is_name = (1..=41).contains(&text.len())
            && first(text.as_bytes()[0])
            && text.bytes().all(|b| first(b) || b.is_ascii_digit())
            // What begins so is PostgreSQL's own.
            && !text.starts_with("pg_");
        match is_name {
            true => Ok(Self(text.into())),
            false => Err(StoreError::Refused(
                "the schema's name: expected 1 to 41 characters of a-z, 0-9 and _, not starting with a digit or pg_"
                    .into(),
            )),
        }
    }
}

fn within(what: &str, found: Duration, min: Duration, max: Duration) -> Result<(), StoreError> {
    match (min..=max).contains(&found) {
        true => Ok(()),
        false => Err(StoreError::Refused(format!("{what} {found:?}: expected {min:?} to {max:?}"))),
    }
}

/// Reads `%40` as `@`, and so on.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(if byte == b'%' { u8::try_from(digit()? * 16 + digit()?).ok()? } else { byte });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_its_password_never_shown() {
        let config = PostgresConfig::from_url(
            "postgres://me:hunter2%40@db.example.com:5433/app?schema=other&sslmode=verify-full&application_name=x",
        )
        .unwrap();
        assert_eq!(config.connections[0].get_password(), Some(&b"hunter2@"[..]));
        assert_eq!(config.schema.as_str(), "other");
        let shown = format!("{config:?}");
        assert!(shown.contains("db.example.com") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn each_of_several_hosts_is_read_with_all_the_rest() {
        let url = "postgres://me:hunter2@one:5433,two,[::1]:5434/app?application_name=x";
        let config = PostgresConfig::from_url(url).unwrap();
        let read: Vec<_> = config.connections.iter().map(|one| (one.get_hosts().to_vec(), one.get_ports())).collect();
        let host = |name: &str| vec![Host::Tcp(name.into())];
        assert_eq!(read, [(host("one"), &[5433][..]), (host("two"), &[5432]), (host("::1"), &[5434])]);
        for one in &config.connections {
            assert_eq!((one.get_user(), one.get_dbname()), (Some("me"), Some("app")));
            assert_eq!((one.get_password(), one.get_application_name()), (Some(&b"hunter2"[..]), Some("x")));
        }
    }

    #[test]
    fn a_bad_url_is_refused_with_what_was_expected_and_not_quoted() {
        let bad = [
            "mysql://me:hunter2@h/d",
            "postgres://me:hunter2@h:port/d",
            "postgres://me:a@h/d?hunter2",
            "postgres://me:a@h/d?hunter2=1",
            "postgres://me:hunter2@h/d?sslmode=maybe",
            "postgres://me:hunter2@h/d?schema=a-b",
            "postgres://me:hunter2@h/d?sslrootcert=%2",
            "postgres://me:hunter2@one,two/d?hostaddr=127.0.0.1,127.0.0.2",
            "postgres://me:hunter2@/d?host=one,two",
            "postgres://me:hunter2@one,two/d?host=three",
            "postgres://me:hunter2@h/d?sslcert=a.pem",
            "postgres://me:hunter2@h/d?sslmode=verify-ca&sslrootcert=/nowhere/at/all",
            "host=h password=hunter2",
        ];
        for bad in bad {
            let error = PostgresConfig::from_url(bad).unwrap_err().to_string();
            assert!(error.contains("expected") && !error.contains("hunter2"), "{bad}: {error}");
        }
    }

    #[test]
    fn limits_are_checked_from_both_sides() {
        let config = || PostgresConfig::from_url("postgres://h/d").unwrap();
        for (ms, good) in [(99, false), (100, true), (600_000, true), (600_001, false)] {
            let time = Duration::from_millis(ms);
            assert_eq!(config().with_lapses_after(time).is_ok(), good, "{ms}");
            assert_eq!(config().with_timeout(time).is_ok(), good, "{ms}");
            assert_eq!(config().with_connect_timeout(time).is_ok(), good, "{ms}");
        }
        for (size, good) in [(0, false), (1, true), (1000, true), (1001, false)] {
            assert_eq!(config().with_pool_size(size).is_ok(), good, "{size}");
        }
        let longest = "a".repeat(41);
        for (name, good) in [
            ("a", true),
            ("_1", true),
            (longest.as_str(), true),
            ("", false),
            (&format!("{longest}a"), false),
            ("1a", false),
            ("A", false),
            ("a\"b", false),
            ("pg_x", false),
        ] {
            assert_eq!(config().with_schema(name).is_ok(), good, "{name}");
        }
    }
}

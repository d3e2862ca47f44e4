//! What can go wrong here, before it is known in which operation and on which instance.

use std::{error::Error as StdError, io, path::Path};

use provisioner_core::{
    Effect, Error, ErrorKind,
    types::{InstanceId, InvalidSpec},
};

/// A problem met below the verbs. [`during`](Self::during) makes the public error of it.
#[derive(Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub(crate) struct Problem {
    kind: ErrorKind,
    effect: Effect,
    field: Option<String>,
    message: String,
    customer_message: Option<String>,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

pub(crate) type Result<T, E = Problem> = std::result::Result<T, E>;

impl Problem {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, effect: Effect::None, field: None, message: message.into(), customer_message: None, source: None }
    }

    /// A file or folder that could not be read or written. The call may have changed something before it.
    pub(crate) fn io(what: &str, path: &Path, error: io::Error) -> Self {
        Self {
            effect: Effect::Unknown,
            ..Self::new(kind_of(&error), format!("cannot {what} {}: {error}", path.display()))
        }
        .with_source(error)
    }

    /// The spec's own words and ours about them: the customer may read them.
    pub(crate) fn spec(field: impl Into<String>, problem: impl Into<String>) -> Self {
        let (field, problem) = (field.into(), problem.into());
        Self {
            customer_message: Some(format!("{field}: {problem}")),
            field: Some(field),
            ..Self::new(ErrorKind::InvalidSpec, problem)
        }
    }

    pub(crate) fn conflict(field: &str, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(ErrorKind::Conflict, message) }
    }

    pub(crate) fn with_effect(mut self, effect: Effect) -> Self {
        self.effect = effect;
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same as something that an operator or time can mend without a change of the spec.
    pub(crate) fn worth_another_try(mut self, what: &str) -> Self {
        if self.kind != ErrorKind::CapacityExhausted {
            self.kind = ErrorKind::Unavailable;
        }
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Whether there was no room.
    pub(crate) fn is_full(&self) -> bool {
        self.kind == ErrorKind::CapacityExhausted
    }

    /// Whether a file or folder was not there.
    pub(crate) fn is_missing_file(&self) -> bool {
        let error = self.source.as_ref().and_then(|source| source.downcast_ref::<io::Error>());
        error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    /// The public error, in this operation and on this instance.
    pub(crate) fn during(self, operation: &'static str, instance: Option<&InstanceId>) -> Error {
        let mut error = Error::new(self.kind, operation).with_effect(self.effect).with_message(self.message);
        if let Some(instance) = instance {
            error = error.with_instance(instance);
        }
        if let Some(field) = self.field {
            error = error.with_field(field);
        }
        if let Some(message) = self.customer_message {
            error = error.with_customer_message(message);
        }
        match self.source {
            Some(source) => error.with_source(source),
            None => error,
        }
    }
}

impl From<InvalidSpec> for Problem {
    fn from(invalid: InvalidSpec) -> Self {
        Self::spec(invalid.field(), invalid.problem())
    }
}

/// What an error of the operating system on our own files means to the engine. Everything that an operator can mend
/// without touching the spec is worth another try.
fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Unauthorized,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
            ErrorKind::CapacityExhausted
        }
        io::ErrorKind::TimedOut => ErrorKind::Timeout,
        // A read-only file system among them: it is mounted for writing again without a word to us.
        _ => ErrorKind::Unavailable,
    }
}

/// What it means when the program could not be started. `None`: the program is not to blame.
pub(crate) fn exec_problem(program: &str, error: &io::Error) -> Option<Problem> {
    use rustix::io::Errno;
    let why = match Errno::from_io_error(error)? {
        Errno::NOENT | Errno::NOTDIR => "is not there, or the interpreter it names is not",
        Errno::ACCESS | Errno::PERM | Errno::ISDIR => "may not be executed",
        Errno::NOEXEC | Errno::INVAL | Errno::LIBBAD => "is not a program for this machine",
        Errno::NAMETOOLONG | Errno::LOOP => "is not a usable path",
        Errno::TOOBIG => {
            return Some(Problem::spec("workload.command", "command and environment are too long together"));
        }
        _ => return None,
    };
    Some(Problem::spec("workload.command[0]", format!("{program:?} {why}")))
}

#[cfg(test)]
mod tests {
    use provisioner_core::Retry;

    use super::*;

    #[test]
    fn errors_of_the_operating_system_by_meaning() {
        use rustix::io::Errno;
        for (errno, kind) in [
            (Errno::ACCESS, ErrorKind::Unauthorized),
            (Errno::ROFS, ErrorKind::Unavailable),
            (Errno::NOSPC, ErrorKind::CapacityExhausted),
            (Errno::DQUOT, ErrorKind::CapacityExhausted),
            (Errno::IO, ErrorKind::Unavailable),
            (Errno::NOTDIR, ErrorKind::Unavailable),
        ] {
            let error = Problem::io("write", Path::new("/x"), errno.into()).during("create", None);
            assert_eq!(error.kind(), kind, "{errno:?}");
            assert!(!error.customer_message().contains("/x"), "{}", error.customer_message());
        }
    }

    #[test]
    fn what_is_read_only_for_a_while_is_tried_again() {
        let error = Problem::io("write", Path::new("/x"), rustix::io::Errno::ROFS.into()).during("resume", None);
        assert_ne!(error.retry(), Retry::Never);
    }

    #[test]
    fn what_is_worth_another_try_keeps_its_words() {
        use rustix::io::Errno;
        for (errno, kind) in [
            (Errno::ACCESS, ErrorKind::Unavailable),
            (Errno::ROFS, ErrorKind::Unavailable),
            (Errno::AGAIN, ErrorKind::Unavailable),
            (Errno::NOSPC, ErrorKind::CapacityExhausted),
        ] {
            let problem = Problem::io("make", Path::new("/x"), errno.into()).worth_another_try("no group");
            assert!(problem.to_string().contains("no group: cannot make /x"), "{problem}");
            let error = problem.during("create", None);
            assert_eq!((error.kind(), error.retry()), (kind, Retry::Backoff), "{errno:?}");
        }
    }

    #[test]
    fn a_program_is_blamed_only_for_its_own_errors() {
        use rustix::io::Errno;
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::NOEXEC, Errno::TOOBIG] {
            let error = exec_problem("/bin/x", &errno.into()).unwrap().during("create", None);
            assert_eq!((error.kind(), error.retry()), (ErrorKind::InvalidSpec, Retry::Never), "{errno:?}");
            assert!(error.field().unwrap().starts_with("workload.command"));
        }
        for errno in [Errno::AGAIN, Errno::NOMEM, Errno::REMOTEIO] {
            assert!(exec_problem("/bin/x", &errno.into()).is_none(), "{errno:?}");
        }
    }
}

//! The one public error, answering four questions: what kind, may I retry, may it have taken effect, on which instance.

use std::{error::Error as StdError, fmt, time::Duration};

use crate::types::{InstanceId, InvalidName, InvalidSpec, Reason};

/// What went wrong. One pointer wide; the chain of [`source`](StdError::source)s leads to the provider's own error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no such thing.
    NotFound,
    /// The request contradicts what is: another owner, a newer generation, a field that cannot be changed in place.
    Conflict,
    /// The spec cannot be had; the field says where.
    InvalidSpec,
    /// The control plane may not do this at the provider.
    Unauthorized,
    /// A quota or the capacity that was promised is used up.
    QuotaExceeded,
    /// The provider has no room at the moment.
    CapacityExhausted,
    /// The provider asks for fewer calls.
    Throttled,
    /// The deadline passed.
    Timeout,
    /// The provider, a vault or the store cannot be reached or cannot serve.
    Unavailable,
    /// The data that should be taken up is not there. Parks: never an empty start.
    DataMissing,
    /// The instance's cell is not configured.
    CellMissing,
    /// The backend cannot do this.
    Unsupported,
    /// The caller gave up, or the control plane is shutting down.
    Cancelled,
    /// The store has no room for the write. Nothing was accepted.
    StoreFull,
    /// The store's file is damaged, foreign or from a newer release.
    StoreRefused,
    /// This control plane's session ended: another one took over.
    SessionLost,
    /// Something that should not happen.
    Internal,
}

impl ErrorKind {
    /// The word for it, in kebab case: stable, for programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::InvalidSpec => "invalid-spec",
            Self::Unauthorized => "unauthorized",
            Self::QuotaExceeded => "quota-exceeded",
            Self::CapacityExhausted => "capacity-exhausted",
            Self::Throttled => "throttled",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
            Self::DataMissing => "data-missing",
            Self::CellMissing => "cell-missing",
            Self::Unsupported => "unsupported",
            Self::Cancelled => "cancelled",
            Self::StoreFull => "store-full",
            Self::StoreRefused => "store-refused",
            Self::SessionLost => "session-lost",
            Self::Internal => "internal",
        }
    }

    const fn default_retry(self) -> Retry {
        match self {
            Self::QuotaExceeded
            | Self::CapacityExhausted
            | Self::Throttled
            | Self::Timeout
            | Self::Unavailable
            | Self::Cancelled
            | Self::StoreFull
            | Self::Internal => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    const fn customer_message(self) -> &'static str {
        match self {
            Self::NotFound => "There is no such instance.",
            Self::Conflict => "The request contradicts the current state of the instance.",
            Self::InvalidSpec => "The requested configuration is not possible.",
            Self::QuotaExceeded | Self::CapacityExhausted => "There is no room for this at the moment.",
            Self::Throttled | Self::Timeout | Self::Unavailable | Self::StoreFull | Self::Cancelled => {
                "The service is busy. Please try again in a moment."
            }
            Self::DataMissing => "The data of this instance needs attention. The operator has to look.",
            _ => "Something went wrong on our side. The operator has to look.",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No: something has to change first.
    Never,
    /// Yes, with growing delays.
    Backoff,
    /// Yes, but not before this much time has passed.
    After(Duration),
    /// Yes, at once, as another incarnation: what this one's names and tokens stand for cannot be had, such as a machine in a
    /// place that is full. Only of a [`create`](crate::Provisioner::create) that had [no effect](Effect::None), and by a backend
    /// that knows the same of the calls before it.
    Anew,
}

/// Whether the request may have acted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It did not.
    None,
    /// It may have: look before acting again.
    Unknown,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    effect: Effect,
    operation: &'static str,
    instance: Option<InstanceId>,
    field: Option<String>,
    message: Option<String>,
    customer_message: Option<String>,
    code: Option<String>,
    request_id: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// Prints everything but the source: the chain printer adds that.
impl fmt::Display for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation)?;
        if let Some(instance) = &self.instance {
            write!(f, " {instance}")?;
        }
        write!(f, ": {}", self.kind)?;
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        match (&self.code, &self.request_id) {
            (Some(code), Some(id)) => write!(f, " ({code}, request {id})"),
            (Some(code), None) => write!(f, " ({code})"),
            (None, Some(id)) => write!(f, " (request {id})"),
            (None, None) => Ok(()),
        }
    }
}

impl StdError for Inner {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl Error {
    /// An error of this kind in this operation (a verb in the infinitive), with the kind's usual answer to whether a
    /// retry helps and no effect.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: kind.default_retry(),
            effect: Effect::None,
            operation,
            instance: None,
            field: None,
            message: None,
            customer_message: None,
            code: None,
            request_id: None,
            source: None,
        }))
    }

    /// The same with another answer to whether a retry helps.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// The same with the effect that the request may have had.
    #[must_use]
    pub fn with_effect(mut self, effect: Effect) -> Self {
        self.0.effect = effect;
        self
    }

    /// The same about this instance.
    #[must_use]
    pub fn with_instance(mut self, instance: &InstanceId) -> Self {
        self.0.instance = Some(instance.clone());
        self
    }

    /// The same about this field of the spec or request.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// The same with words for the operator. Never put a secret here.
    #[must_use]
    pub fn with_message(mut self, message: impl Into<String>) -> Self {
        self.0.message = Some(message.into());
        self
    }

    /// The same with words that the customer may read. Without them the customer gets a sentence by kind.
    #[must_use]
    pub fn with_customer_message(mut self, message: impl Into<String>) -> Self {
        self.0.customer_message = Some(message.into());
        self
    }

    /// The same with the provider's error code.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// The same with the provider's request id.
    #[must_use]
    pub fn with_request_id(mut self, id: impl Into<String>) -> Self {
        self.0.request_id = Some(id.into());
        self
    }

    /// The same with what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether trying again can help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Whether the request may have acted.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// What was being done, as a verb.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// On which instance.
    #[must_use]
    pub fn instance(&self) -> Option<&InstanceId> {
        self.0.instance.as_ref()
    }

    /// Which field of the spec or request is to blame.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// The provider's error code.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The provider's request id.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.0.request_id.as_deref()
    }

    /// Words that the customer may read: they leak no internals.
    #[must_use]
    pub fn customer_message(&self) -> &str {
        self.0.customer_message.as_deref().unwrap_or_else(|| self.0.kind.customer_message())
    }

    /// The reason for the store and for operators: the kind as code, the whole chain as message.
    #[must_use]
    pub fn to_reason(&self) -> Reason {
        Reason::new(self.0.kind.as_str(), Chain(self).to_string())
    }
}

impl From<InvalidSpec> for Error {
    fn from(invalid: InvalidSpec) -> Self {
        Self::new(ErrorKind::InvalidSpec, "validate")
            .with_field(invalid.field())
            .with_message(invalid.problem())
            // The field and what is wrong with it are the customer's own words and ours about them.
            .with_customer_message(invalid.to_string())
    }
}

impl From<InvalidName> for Error {
    fn from(invalid: InvalidName) -> Self {
        let text = invalid.to_string();
        Self::new(ErrorKind::InvalidSpec, "validate").with_message(text.clone()).with_customer_message(text)
    }
}

/// Prints an error with all its causes, separated by colons, each text once.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a, E: ?Sized>(pub &'a E);

impl<E: StdError + ?Sized> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their source in their own text.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_pointer_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }

    #[test]
    fn prints_operation_instance_kind_code_and_the_chain_once() {
        let error = Error::new(ErrorKind::Throttled, "create")
            .with_instance(&InstanceId::new("acme").unwrap())
            .with_code("RequestLimitExceeded")
            .with_request_id("r-1")
            .with_source(std::io::Error::other("slow down"));
        assert_eq!(error.to_string(), "create acme: throttled (RequestLimitExceeded, request r-1)");
        assert_eq!(Chain(&error).to_string(), format!("{error}: slow down"));
        assert_eq!(error.customer_message(), "The service is busy. Please try again in a moment.");
    }
}

//! Requests to Resource Manager: each is signed in, waits for its turn, ends by its caller's deadline, and has its failure read.

use std::{fmt, sync::Arc, time::Duration};

use azure_core::{
    credentials::TokenCredential,
    error::ErrorKind as AzureErrorKind,
    http::{
        ClientOptions, Context, Method, Pipeline, PipelineSendOptions, RawResponse, Request, RetryOptions, Transport,
        Url,
        headers::{CONTENT_TYPE, HeaderName},
        policies::auth::BearerTokenAuthorizationPolicy,
    },
};
use azure_identity::{
    DeveloperToolsCredential, ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use provisioner_account::{Bucket, Failure, Pace, until};
use provisioner_core::{Error, ErrorKind, OpContext, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    answer::Answer,
    https::Https,
    operation,
    refusal::{Refused, THROTTLED_PAUSE, failure_of},
};

/// The public cloud.
const ENDPOINT: &str = "https://management.azure.com";
/// For whom its tokens are.
const AUDIENCE: &str = "https://management.azure.com/.default";

/// What the service counts by itself: for each subscription, region and principal, and what the provider of storage counts beside
/// that; see
/// <https://learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    Read,
    Write,
    Delete,
    StorageRead,
    StorageWrite,
}

impl Family {
    const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Delete, Self::StorageRead, Self::StorageWrite];

    fn of(method: Method) -> Self {
        match method {
            Method::Get | Method::Head => Self::Read,
            Method::Delete => Self::Delete,
            _ => Self::Write,
        }
    }

    /// What the provider counts as well.
    fn of_provider(sent: Sent<'_>) -> Option<Self> {
        let is_storage = sent.url.path().contains("/providers/Microsoft.Storage/");
        let is_read = Self::of(sent.method) == Self::Read;
        is_storage.then_some(if is_read { Self::StorageRead } else { Self::StorageWrite })
    }

    /// Where the service says how many more it takes.
    const fn remaining(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Read | Self::StorageRead => "x-ms-ratelimit-remaining-subscription-reads",
            Self::Write | Self::StorageWrite => "x-ms-ratelimit-remaining-subscription-writes",
            Self::Delete => "x-ms-ratelimit-remaining-subscription-deletes",
        })
    }
}

/// The buckets of a subscription, region and principal. The defaults are those that are documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Buckets {
    /// Reads.
    pub read: Bucket,
    /// Writes.
    pub write: Bucket,
    /// Deletes.
    pub delete: Bucket,
    /// Reads of storage accounts and shares, which count as reads, too.
    pub storage_read: Bucket,
    /// What changes storage accounts and shares, beside that. 10 a second and 1,200 an hour are documented: some of an hour's may come at once.
    pub storage_write: Bucket,
}

impl Default for Buckets {
    fn default() -> Self {
        let bucket = |size, refill| Bucket { size, refill };
        Self {
            read: bucket(250, 25),
            write: bucket(200, 10),
            delete: bucket(200, 10),
            storage_read: bucket(800, 2),
            storage_write: bucket(600, 1),
        }
    }
}

impl Buckets {
    /// Each with the name of its field.
    #[must_use]
    pub const fn all(&self) -> [(&'static str, Bucket); 5] {
        [
            ("read", self.read),
            ("write", self.write),
            ("delete", self.delete),
            ("storage_read", self.storage_read),
            ("storage_write", self.storage_write),
        ]
    }
}

/// How Resource Manager is reached.
#[derive(Debug, Clone)]
pub struct ArmOptions {
    /// Where it is: another cloud, or a stand-in. Its scheme is https, as tokens are sent there.
    pub endpoint: String,
    /// For whom tokens are asked.
    pub audience: String,
    /// The caller's own HTTP client. `None`: one with the system's roots of trust.
    pub transport: Option<Transport>,
    /// How much the account takes.
    pub buckets: Buckets,
    /// How often an operation is asked whether it has ended, at most, where the service does not say so itself.
    pub poll_every: Duration,
}

impl Default for ArmOptions {
    fn default() -> Self {
        Self {
            endpoint: ENDPOINT.to_owned(),
            audience: AUDIENCE.to_owned(),
            transport: None,
            buckets: Buckets::default(),
            poll_every: Duration::from_secs(2),
        }
    }
}

/// Resource Manager. A clone is the same.
#[derive(Clone)]
pub struct Arm {
    shared: Arc<Shared>,
}

struct Shared {
    pipeline: Pipeline,
    endpoint: Url,
    pace: Arc<Pace<Family>>,
    poll_every: Duration,
}

impl fmt::Debug for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arm").field("endpoint", &self.shared.endpoint.as_str()).finish_non_exhaustive()
    }
}

/// Whoever runs this: by workload identity where `AZURE_FEDERATED_TOKEN_FILE` is set, by managed identity where `IDENTITY_ENDPOINT` is,
/// or `AZURE_CLIENT_ID` names one, else as the developer's tools are signed in. Asks nobody yet.
///
/// # Errors
/// When none of them can be set up.
pub fn signed_in() -> Result<Arc<dyn TokenCredential>> {
    let none = |error: azure_core::Error| Error::new(ErrorKind::Unauthorized, "configure").with_source(error);
    let client_options = ClientOptions { transport: Some(Https::new()?.transport()), ..ClientOptions::default() };
    if std::env::var_os("AZURE_FEDERATED_TOKEN_FILE").is_some() {
        let mut options = WorkloadIdentityCredentialOptions::default();
        options.credential_options.client_options = client_options;
        return Ok(WorkloadIdentityCredential::new(Some(options)).map_err(none)?);
    }
    if std::env::var_os("IDENTITY_ENDPOINT").is_some() || std::env::var_os("AZURE_CLIENT_ID").is_some() {
        let user_assigned_id = std::env::var("AZURE_CLIENT_ID").ok().map(UserAssignedId::ClientId);
        let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
        return Ok(ManagedIdentityCredential::new(Some(options)).map_err(none)?);
    }
    Ok(DeveloperToolsCredential::new(None).map_err(none)?)
}

impl Arm {
    /// Signs requests in with this credential. Touches nothing.
    ///
    /// # Errors
    /// [`InvalidSpec`](ErrorKind::InvalidSpec) naming the option that is wrong and what was expected.
    pub fn new(credential: Arc<dyn TokenCredential>, options: ArmOptions) -> Result<Self> {
        let wrong = |field: &str, problem: &str| {
            Error::new(ErrorKind::InvalidSpec, "configure").with_field(field).with_message(problem)
        };
        let endpoint: Url = options.endpoint.parse().map_err(|_| wrong("endpoint", "expected a URL"))?;
        if endpoint.scheme() != "https" || endpoint.host().is_none() {
            return Err(wrong("endpoint", "expected an https URL, as tokens are sent there"));
        }
        if let Some((name, _)) = options.buckets.all().into_iter().find(|(_, one)| one.size == 0 || one.refill == 0) {
            return Err(wrong(&format!("buckets.{name}"), "expected a size and a refill of 1 or more"));
        }
        if options.poll_every < Duration::from_millis(1) {
            return Err(wrong("poll_every", "expected a millisecond or more, such as 2 s"));
        }
        let transport = match options.transport {
            Some(transport) => transport,
            None => Https::new()?.transport(),
        };
        let signing = BearerTokenAuthorizationPolicy::new(credential, [options.audience]);
        let client = ClientOptions {
            transport: Some(transport),
            // The engine owns them: each of its tries is one that its operators can see.
            retry: RetryOptions::none(),
            ..ClientOptions::default()
        };
        let (name, version) = (option_env!("CARGO_PKG_NAME"), option_env!("CARGO_PKG_VERSION"));
        let pipeline = Pipeline::new(name, version, client, Vec::new(), vec![Arc::new(signing)], None);
        let buckets = options.buckets;
        let pace = Pace::new(Family::ALL.into_iter().zip(buckets.all()).map(|(family, (_, bucket))| (family, bucket)));
        Ok(Self { shared: Arc::new(Shared { pipeline, endpoint, pace, poll_every: options.poll_every }) })
    }

    /// On behalf of one caller.
    #[must_use]
    pub fn during<'a>(&'a self, cx: &'a OpContext) -> Calls<'a> {
        Calls { shared: &self.shared, cx }
    }
}

/// Where resources are: a resource group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// The subscription by id.
    pub subscription: String,
    /// The resource group by name.
    pub resource_group: String,
}

impl Scope {
    /// The path of a resource of a provider, such as `Microsoft.Web`.
    #[must_use]
    pub fn path(&self, provider: &str, resource: &str) -> String {
        let Self { subscription, resource_group } = self;
        format!("/subscriptions/{subscription}/resourceGroups/{resource_group}/providers/{provider}/{resource}")
    }
}

/// What is sent. The body may hold secrets: there is no `Debug`.
#[derive(Clone, Copy)]
pub(crate) struct Sent<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a Url,
    pub(crate) body: Option<&'a [u8]>,
}

/// Requests on behalf of one caller.
#[derive(Clone, Copy)]
pub struct Calls<'a> {
    shared: &'a Shared,
    /// The caller.
    pub cx: &'a OpContext,
}

impl fmt::Debug for Calls<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

impl Calls<'_> {
    /// Reads a resource. `None`: it is not there.
    ///
    /// # Errors
    /// When it may not or could not be read; that its resource group is not there is no absence.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, version: &str) -> Result<Option<T>, Failure> {
        let url = self.url(path, version, "")?;
        let answer = self.send(Sent { method: Method::Get, url: &url, body: None }).await?;
        match answer.status {
            200 => answer.read().map(Some),
            404 if is_absent(&answer, path) => Ok(None),
            _ => Err(failure_of(&answer)),
        }
    }

    /// Reads a page of a list, and tells where the next one is. `from`: where this one is, if it is not the first.
    ///
    /// # Errors
    /// When it may not or could not be read, or the next page is at another origin.
    pub async fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        version: &str,
        from: Option<&str>,
    ) -> Result<(Vec<T>, Option<String>), Failure> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page<T> {
            value: Vec<T>,
            next_link: Option<String>,
        }

        let url = match from {
            Some(link) => self.own(link)?,
            None => self.url(path, version, "")?,
        };
        let answer = self.send(Sent { method: Method::Get, url: &url, body: None }).await?;
        if !answer.is_success() {
            return Err(failure_of(&answer));
        }
        let page: Page<T> = answer.read()?;
        Ok((page.value, page.next_link.filter(|link| !link.is_empty())))
    }

    /// Reads a list to its end.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub async fn list<T: DeserializeOwned>(&self, path: &str, version: &str) -> Result<Vec<T>, Failure> {
        let (mut all, mut next) = self.page(path, version, None).await?;
        while let Some(link) = next {
            let (more, then) = self.page(path, version, Some(&link)).await?;
            all.extend(more);
            next = then;
        }
        Ok(all)
    }

    /// Makes or changes a resource, and waits until that has come to its end: what it is then.
    ///
    /// # Errors
    /// When it is refused, ends badly, or has not ended by the deadline: it may end later.
    pub async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        version: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        self.write(Method::Put, path, version, body).await
    }

    /// Changes some of a resource.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        version: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        self.write(Method::Patch, path, version, body).await
    }

    async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        version: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, Failure> {
        let url = self.url(path, version, "")?;
        let body = serde_json::to_vec(body).map_err(|_| Failure::new(ErrorKind::Internal, "a body that is no JSON"))?;
        let answer = self.send(Sent { method, url: &url, body: Some(&body) }).await?;
        if !answer.is_success() {
            return Err(failure_of(&answer));
        }
        operation::finished(self, answer, &url).await?.read()
    }

    /// Has something done with a resource, such as `stop`, and reads the answer. `Null`: it has no body.
    ///
    /// # Errors
    /// When it is refused, or it is not known whether it was done.
    pub async fn post(&self, path: &str, version: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let url = self.url(path, version, "")?;
        let body = body.map(Value::to_string);
        let answer =
            self.send(Sent { method: Method::Post, url: &url, body: body.as_deref().map(str::as_bytes) }).await?;
        if !answer.is_success() {
            return Err(failure_of(&answer));
        }
        Ok(answer.value())
    }

    /// Removes a resource. `query`: what is asked beside that, such as `&deleteMetrics=true`. Whether it was there is not told.
    ///
    /// # Errors
    /// When it is refused, or it is not known whether it was done.
    pub async fn delete(&self, path: &str, version: &str, query: &str) -> Result<(), Failure> {
        let url = self.url(path, version, query)?;
        let answer = self.send(Sent { method: Method::Delete, url: &url, body: None }).await?;
        match answer.status {
            202 => operation::gone(self, answer, &url).await,
            200..300 => Ok(()),
            404 if is_absent(&answer, path) => Ok(()),
            _ => Err(failure_of(&answer)),
        }
    }

    pub(crate) fn poll_every(&self) -> Duration {
        self.shared.poll_every
    }

    fn url(&self, path: &str, version: &str, query: &str) -> Result<Url, Failure> {
        let url = self.shared.endpoint.join(&format!("{path}?api-version={version}{query}"));
        url.map_err(|_| Failure::new(ErrorKind::Internal, format!("{path} is no path")))
    }

    /// A URL that the service gave. One at another origin is refused: whoever is there would get the token.
    pub(crate) fn own(&self, link: &str) -> Result<Url, Failure> {
        let url = self.shared.endpoint.join(link).ok();
        let own = self.shared.endpoint.origin();
        url.filter(|url| url.origin() == own).ok_or_else(|| {
            let message = "the service sends us to another origin, and would have the token sent there";
            Failure::new(ErrorKind::Internal, message).in_doubt()
        })
    }

    /// Sends a request when it is its turn. Once more where its token had expired: the policy has forgotten that one then, and
    /// nothing was done.
    pub(crate) async fn send(&self, sent: Sent<'_>) -> Result<Answer, Failure> {
        let call = called(sent);
        let answer = self.send_once(sent, &call).await?;
        let is_expired = answer.status == 401 && failure_of(&answer).code.is_some_and(|code| code.contains("Token"));
        if is_expired { self.send_once(sent, &call).await } else { Ok(answer) }
    }

    async fn send_once(&self, sent: Sent<'_>, call: &str) -> Result<Answer, Failure> {
        let (pace, family) = (&self.shared.pace, Family::of(sent.method));
        let of_provider = Family::of_provider(sent);
        for counted in of_provider.into_iter().chain([family]) {
            pace.take(counted, 1, self.cx).await.map_err(|why| Failure::not_sent(why, call))?;
        }
        let mut request = Request::new(sent.url.clone(), sent.method);
        if let Some(body) = sent.body {
            request.insert_header(CONTENT_TYPE, "application/json");
            request.set_body(body.to_vec());
        } else if family != Family::Read {
            // Some front doors refuse a request without a length.
            request.insert_header("content-length", "0");
        }
        let (context, options) = (Context::default(), PipelineSendOptions { skip_checks: true, ..Default::default() });
        let cut = |kind, why| Failure::new(kind, format!("{call}: {why}")).in_doubt();
        let given_up = async {
            // What changes something and was sent is seen through.
            match family {
                Family::Read => self.cx.cancel.cancelled().await,
                _ => std::future::pending().await,
            }
        };
        let response = tokio::select! {
            response = self.shared.pipeline.send(&context, &mut request, Some(options)) => response,
            () = until(self.cx.deadline) => return Err(cut(ErrorKind::Timeout, "no answer in time")),
            () = given_up => return Err(cut(ErrorKind::Cancelled, "given up before its answer")),
        };
        let response = response.map_err(|error| failed(call, &error))?;
        self.heed(family, of_provider, &response);
        Ok(Answer::new(call.to_owned(), &response))
    }

    /// What an answer says of how much the account may ask for.
    fn heed(&self, family: Family, of_provider: Option<Family>, response: &RawResponse) {
        let remaining = response.headers().get_optional_string(&family.remaining());
        if let Some(remaining) = remaining.and_then(|text| text.trim().parse().ok()) {
            self.shared.pace.remaining(family, remaining);
        }
        if u16::from(response.status()) == 429 {
            let failure = failure_of(&Answer::new(String::new(), response));
            if let (ErrorKind::Throttled, retry) = (failure.kind, failure.retry) {
                let pause = match retry {
                    Some(provisioner_core::Retry::After(pause)) => pause,
                    _ => THROTTLED_PAUSE,
                };
                // One provider that is busy stops nothing that is asked of others.
                self.shared.pace.refused(of_provider.unwrap_or(family), pause);
            }
        }
    }
}

/// What was asked, in words that name no subscription.
fn called(sent: Sent<'_>) -> String {
    let path = sent.url.path();
    let short = path.split_once("/providers/").map_or(path, |(_, resource)| resource);
    format!("{} {short}", sent.method.as_str())
}

/// Whether an answer says that just this is not there: not the group or account that it would be in, and not a proxy before the service.
fn is_absent(answer: &Answer, path: &str) -> bool {
    let failure = failure_of(answer);
    let code = Refused::read(&answer.value()).code;
    match path.contains("/shares/") {
        true => code == "ShareNotFound",
        // The contract of App Service has no body for that.
        false => failure.kind == ErrorKind::NotFound && (!code.is_empty() || answer.request_id.is_some()),
    }
}

/// Whether somebody has said that there is no token for us. That nobody could be asked is no such word.
#[must_use]
pub fn is_refused(error: &azure_core::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(AzureErrorKind::HttpResponse { status, .. }) = cause.downcast_ref().map(azure_core::Error::kind)
            && [400, 401, 403].contains(&u16::from(*status))
        {
            return true;
        }
        next = cause.source();
    }
    false
}

fn failed(call: &str, error: &azure_core::Error) -> Failure {
    let told = |kind, why: &str| Failure::new(kind, format!("{call}: {why}"));
    match error.kind() {
        // Never connected: nothing was sent.
        AzureErrorKind::Connection => told(ErrorKind::Unavailable, "the service could not be reached"),
        AzureErrorKind::Credential if is_refused(error) => told(ErrorKind::Unauthorized, "no token is given to us"),
        AzureErrorKind::Credential => told(ErrorKind::Unavailable, &format!("no token is to be had: {error}")),
        _ => told(ErrorKind::Unavailable, "the connection was lost before its answer").in_doubt(),
    }
}

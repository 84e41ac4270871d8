//! One registry: where it is reached, and requests that carry what it wants to see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use reqwest::{Request, Response, Url};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::image::reference::DEFAULT_HOST;

use super::ClientConfig;
use super::auth::{Access, Authenticator, Pass};
use super::challenge;
use super::error::Fault;
use super::response::fault_of;
use super::transport::{Transports, is_loopback};

/// How long a loopback registry has to show that it speaks TLS.
const TLS_PROBE: Duration = Duration::from_secs(5);

/// One registry.
pub(super) struct Endpoint {
    host: String,
    plain: bool,
    /// Whether it may do without TLS (registries.conf).
    insecure: bool,
    /// Where the registry is asked in place of its own address.
    mirror: Option<Url>,
    answer_timeout: Duration,
    transports: Arc<Transports>,
    auth: Authenticator,
    base: OnceCell<Url>,
    /// Set once the registry has shown that it lacks the referrers API.
    pub without_referrers: AtomicBool,
    /// Held by whoever rewrites a fallback index.
    pub fallback: tokio::sync::Mutex<()>,
    /// Set once the registry has answered a Range request with the whole blob.
    ignores_range: AtomicBool,
}

impl Endpoint {
    pub fn new(
        host: &str,
        plain: bool,
        config: &ClientConfig,
        transports: &Arc<Transports>,
    ) -> Self {
        Self {
            host: host.to_owned(),
            plain,
            insecure: config.registries.is_insecure(host),
            mirror: config.docker_mirror.clone().filter(|_| host == DEFAULT_HOST),
            answer_timeout: config.answer_timeout,
            transports: Arc::clone(transports),
            auth: Authenticator::new(
                config.credentials.clone(),
                Arc::clone(transports),
                config.answer_timeout,
            ),
            base: OnceCell::new(),
            without_referrers: AtomicBool::new(false),
            fallback: tokio::sync::Mutex::default(),
            ignores_range: AtomicBool::new(false),
        }
    }

    /// The URL of `path`, which begins with `v2/` and is made of valid names only.
    pub async fn url(&self, path: &str) -> Result<Url, Fault> {
        let base = self.base.get_or_try_init(|| self.find_base()).await?;
        base.join(path).map_err(|error| Fault::Protocol(format!("{path}: {error}")))
    }

    /// A registry is reached by TLS. The exceptions are those the operator names, and loopback
    /// addresses, where nobody else listens: there, and with registries that are insecure
    /// anyway, plain HTTP is used if TLS is not spoken.
    async fn find_base(&self) -> Result<Url, Fault> {
        if let Some(mirror) = &self.mirror {
            return Ok(mirror.clone());
        }
        let host = if self.host == DEFAULT_HOST { "registry-1.docker.io" } else { &self.host };
        let base = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|error| Fault::Protocol(format!("{host}: {error}")))
        };
        let may_be_plain = self.insecure || is_loopback(host);
        if self.plain || may_be_plain && !self.speaks_tls(base("https")?).await? {
            return base("http");
        }
        base("https")
    }

    /// Asked without a secret, and therefore of whoever answers: to read the CA store takes longer
    /// than the question.
    async fn speaks_tls(&self, url: Url) -> Result<bool, Fault> {
        let client = self.transports.unverified_client_for(&url)?;
        match timeout(TLS_PROBE, client.get(url).send()).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(error)) => match Fault::of_request(error) {
                Fault::Refused => Err(Fault::Refused),
                // A certificate that is not accepted is TLS nevertheless.
                fault => Ok(fault.is_from_tls()),
            },
            Err(_) => Ok(false),
        }
    }

    /// Sends `request`, with the pass for `access` where the registry wants one. A refusal is
    /// answered once by getting a pass, or a new one: tokens expire in the middle of images.
    pub async fn send(&self, mut request: Request, access: &Access) -> Result<Response, Fault> {
        let spare = request.try_clone();
        let shown = match self.is_own(request.url()) {
            true => self.auth.pass(access).await,
            false => None,
        };
        if let Some(pass) = &shown {
            pass.show(&mut request);
        }
        let response = self.execute(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenge = challenge::strongest(response.headers());
        let (Some(challenge), Some(mut again)) = (challenge, spare) else {
            return Err(refusal(response, shown.as_ref()).await);
        };
        if !self.is_own(response.url()) {
            return Err(refusal(response, shown.as_ref()).await);
        }
        let pass = self.auth.answer(challenge, access, shown.as_ref()).await?;
        pass.show(&mut again);
        let response = self.execute(again).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Err(refusal(response, Some(&pass)).await),
            _ => Ok(response),
        }
    }

    async fn execute(&self, request: Request) -> Result<Response, Fault> {
        let client = self.transports.client_for(request.url())?;
        let uploads = request.body().is_some_and(|body| body.as_bytes().is_none());
        let sent = client.execute(request);
        // The answer to a streamed upload comes after its last byte; its own guard watches it.
        let response = match uploads {
            true => sent.await,
            false => timeout(self.answer_timeout, sent).await.map_err(|_| Fault::Stalled {
                received: 0,
                seconds: self.answer_timeout.as_secs(),
            })?,
        };
        response.map_err(Fault::of_request)
    }

    /// Whether `url` is this registry, which alone may see its passes.
    pub fn is_own(&self, url: &Url) -> bool {
        self.base.get().is_some_and(|base| base.origin() == url.origin())
    }

    /// The URL of a `Location`, relative to the one that was asked. Registries behind a proxy
    /// that ends TLS name themselves with `http:`; that is corrected, never followed.
    pub fn resolve(&self, asked: &Url, location: &str) -> Result<Url, Fault> {
        let wrong = || Fault::Protocol(format!("Location `{location}`"));
        let mut url = asked.join(location).map_err(|_| wrong())?;
        if asked.scheme() == "https" && url.scheme() == "http" {
            if url.host_str() != asked.host_str() {
                return Err(wrong());
            }
            url.set_scheme("https").map_err(|()| wrong())?;
            url.set_port(asked.port()).map_err(|()| wrong())?;
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong());
        }
        Ok(url)
    }

    /// Notes that a Range was answered by the whole blob, and says so once.
    pub fn note_ignored_range(&self) {
        if !self.ignores_range.swap(true, Ordering::Relaxed) {
            let registry = &self.host;
            tracing::warn!(registry, "ignores Range requests: whole blobs are transferred");
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host)
    }
}

async fn refusal(response: Response, shown: Option<&Pass>) -> Fault {
    match fault_of(response).await {
        Fault::Unauthorized { message, .. } => {
            let with = shown.map_or(" without credentials".to_owned(), Pass::in_words);
            Fault::Unauthorized { with, message }
        }
        fault => fault,
    }
}

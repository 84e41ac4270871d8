//! One registry: where it is reached, and requests that carry what it wants to see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;
use reqwest::{Request, Response, Url};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::image::reference::DEFAULT_HOST;

use super::ClientConfig;
use super::auth::{Access, Authenticator, Learned, Pass};
use super::challenge;
use super::error::Fault;
use super::lately::Lately;
use super::response::fault_of;
use super::transport::{Transports, is_loopback};

/// How long a registry that may do without TLS has to show what it speaks.
const PROBE: Duration = Duration::from_secs(5);

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
    /// The registry has shown that it lacks the referrers API.
    pub without_referrers: Lately,
    /// It has kept somebody waiting for nothing.
    hangs: Lately,
    /// How long somebody waits until he calls it that.
    patience: Duration,
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
            without_referrers: Lately::new(config.recall),
            hangs: Lately::new(config.recall),
            patience: config.answer_timeout.min(config.connect_timeout) / 4,
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
    /// anyway, plain HTTP is used if that is what is spoken.
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
        if self.plain || may_be_plain && self.is_plain(base("https")?, base("http")?).await? {
            return base("http");
        }
        base("https")
    }

    /// Whether a registry that may do without TLS does. It has to show that: a lost network, or a
    /// registry that is just starting, would otherwise take TLS away for good.
    async fn is_plain(&self, tls: Url, plain: Url) -> Result<bool, Fault> {
        let fault = match self.probe(tls).await {
            Ok(_) => return Ok(false),
            // A certificate that is not accepted is TLS nevertheless.
            Err(fault) if fault.is_from_tls() => return Ok(false),
            Err(Fault::NotTls(_)) => return Ok(true),
            Err(Fault::Refused) => return Err(Fault::Refused),
            // Some servers hang up on what they do not understand, or wait for more of it.
            Err(fault) => fault,
        };
        match self.probe(plain.join("v2/").unwrap_or(plain)).await {
            Ok(answer) if answer.url().scheme() == "https" => Ok(false),
            // Those who speak TLS tell who does not by status 400.
            Ok(answer) if answer.status() != StatusCode::BAD_REQUEST => Ok(true),
            _ => Err(fault),
        }
    }

    /// Asks without a secret, and therefore whoever answers: to read the CA store takes longer
    /// than the question.
    async fn probe(&self, url: Url) -> Result<Response, Fault> {
        let client = self.transports.unverified_client_for(&url)?;
        let late = |_| Fault::Stalled { received: 0, seconds: PROBE.as_secs() };
        timeout(PROBE, client.get(url).send()).await.map_err(late)?.map_err(Fault::of_request)
    }

    /// Whether the registry has kept somebody waiting for nothing, lately.
    pub fn hangs(&self) -> bool {
        self.hangs.holds()
    }

    /// Watches a request that is sent to this registry now.
    pub fn watch(&self) -> Watch<'_> {
        Watch { endpoint: self, since: Instant::now(), answered: false }
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
        let learned = Learned { challenge, by_tls: response.url().scheme() == "https" };
        let pass = self.auth.answer(learned, access, shown.as_ref()).await?;
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

/// A request that is on its way. Dropped before the answer, be it by a deadline of the caller, it
/// notes that the registry hangs, if it was waited for long enough.
pub(super) struct Watch<'a> {
    endpoint: &'a Endpoint,
    since: Instant,
    answered: bool,
}

impl Watch<'_> {
    /// The registry answers.
    pub fn answered(mut self) {
        self.endpoint.hangs.forget();
        self.answered = true;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() >= self.endpoint.patience {
            self.endpoint.hangs.note();
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

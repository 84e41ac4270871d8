//! Showing a registry who asks: what it wants is learned from its first refusal, and passes
//! (an `Authorization` header each) are kept per scope until they expire or are refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Request, Url};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use crate::image::Repository;

use super::challenge::Challenge;
use super::credentials::{Credential, Credentials};
use super::error::Fault;
use super::response::{Limit, Reading, fault_of, read_all};
use super::transport::{Transports, is_loopback};

/// What a token is good for at least, where its service does not say (token spec).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A pass is renewed this long before it expires, so that no request sets out with a stale one.
const MARGIN: Duration = Duration::from_secs(10);
const MAX_TOKEN_ANSWER: u64 = 1 << 20;

/// What a request needs to be allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Access {
    /// `host/path`, by which credentials are looked up.
    repository: String,
    /// Scopes of the token spec, such as `repository:a/b:pull,push`.
    scopes: Vec<String>,
}

impl Access {
    /// To read from `repository`.
    pub fn pull(repository: &Repository) -> Self {
        Self::to(repository, "pull")
    }

    /// To write to `repository`.
    pub fn push(repository: &Repository) -> Self {
        Self::to(repository, "pull,push")
    }

    /// To delete from `repository`.
    pub fn delete(repository: &Repository) -> Self {
        Self::to(repository, "pull,push,delete")
    }

    /// To mount blobs of `from` in `repository`.
    pub fn mount(repository: &Repository, from: &Repository) -> Self {
        let mut access = Self::push(repository);
        access.scopes.push(format!("repository:{}:pull", from.path()));
        access
    }

    /// To list the repositories of the registry `host`.
    pub fn catalog(host: &str) -> Self {
        Self { repository: host.to_owned(), scopes: vec!["registry:catalog:*".to_owned()] }
    }

    /// To see whether the registry `host` answers.
    pub fn none(host: &str) -> Self {
        Self { repository: host.to_owned(), scopes: Vec::new() }
    }

    fn to(repository: &Repository, actions: &str) -> Self {
        let scope = format!("repository:{}:{actions}", repository.path());
        Self { repository: repository.as_str().to_owned(), scopes: vec![scope] }
    }
}

/// An `Authorization` header and how long it is good for.
#[derive(Clone)]
pub(super) struct Pass {
    /// Marked sensitive, so that nothing prints it.
    header: HeaderValue,
    expires: Option<Instant>,
    user: Option<String>,
}

impl Pass {
    fn new(text: &str, expires: Option<Instant>, user: Option<String>) -> Option<Self> {
        let mut header = HeaderValue::from_str(text).ok()?;
        header.set_sensitive(true);
        Some(Self { header, expires, user })
    }

    fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }

    /// Puts the header onto a request.
    pub fn show(&self, request: &mut Request) {
        request.headers_mut().insert(AUTHORIZATION, self.header.clone());
    }

    /// ` with the credentials of …`, for messages.
    pub fn in_words(&self) -> String {
        self.user.as_ref().map_or(" without credentials".to_owned(), |user| {
            format!(" with the credentials of {user}")
        })
    }
}

/// What a registry wants to be shown.
#[derive(Clone)]
pub(super) struct Learned {
    /// In its own words.
    pub challenge: Challenge,
    /// Whether it said so by TLS. Then no password leaves without TLS either.
    pub by_tls: bool,
}

/// The passes for one registry. Each scope's pass is got by one request at a time; others that
/// need it wait for it.
pub(super) struct Authenticator {
    credentials: Credentials,
    transports: Arc<Transports>,
    /// How long a token service may take to answer.
    answer_timeout: Duration,
    learned: Mutex<Option<Learned>>,
    passes: Mutex<HashMap<Access, Arc<tokio::sync::Mutex<Option<Pass>>>>>,
}

impl Authenticator {
    pub fn new(
        credentials: Credentials,
        transports: Arc<Transports>,
        answer_timeout: Duration,
    ) -> Self {
        let (learned, passes) = (Mutex::default(), Mutex::default());
        Self { credentials, transports, answer_timeout, learned, passes }
    }

    /// The pass for `access`; `None` as long as the registry has not asked for any. Where none can
    /// be had, what was learned is forgotten: if the registry still wants one, it will say so.
    pub async fn pass(&self, access: &Access) -> Option<Pass> {
        let learned = self.learned.lock().expect("no panic while it is held").clone()?;
        match self.obtain(&learned, access, None).await {
            Ok(pass) => Some(pass),
            Err(fault) => {
                tracing::debug!(%fault, "no pass: asking without one");
                *self.learned.lock().expect("no panic while it is held") = None;
                None
            }
        }
    }

    /// A pass that answers what was `learned` although `refused` was shown.
    pub async fn answer(
        &self,
        learned: Learned,
        access: &Access,
        refused: Option<&Pass>,
    ) -> Result<Pass, Fault> {
        *self.learned.lock().expect("no panic while it is held") = Some(learned.clone());
        self.obtain(&learned, access, refused).await
    }

    async fn obtain(
        &self,
        Learned { challenge, by_tls }: &Learned,
        access: &Access,
        refused: Option<&Pass>,
    ) -> Result<Pass, Fault> {
        let slot = {
            let mut passes = self.passes.lock().expect("no panic while it is held");
            Arc::clone(passes.entry(access.clone()).or_default())
        };
        let mut slot = slot.lock().await;
        let is_refused = |pass: &Pass| refused.is_some_and(|refused| refused.header == pass.header);
        if let Some(pass) = slot.as_ref().filter(|pass| pass.is_fresh() && !is_refused(pass)) {
            return Ok(pass.clone());
        }
        *slot = None;
        let credential = self.credentials.lookup(&access.repository).await?;
        let pass = match challenge {
            Challenge::Basic => basic(&credential.ok_or(Fault::NoCredentials)?),
            Challenge::Bearer { realm, service, scope } => {
                let wanted = match access.scopes.is_empty() {
                    true => scope.iter().cloned().collect(),
                    false => access.scopes.clone(),
                };
                let (service, within) = (service.as_deref(), self.answer_timeout);
                let ask = TokenRequest { realm, by_tls: *by_tls, service, scopes: &wanted, within };
                ask.send(&self.transports, credential.as_ref(), access).await?
            }
        };
        *slot = Some(pass.clone());
        Ok(pass)
    }
}

fn basic(credential: &Credential) -> Pass {
    let pair = format!("{}:{}", credential.user, credential.password.expose());
    let header = format!("Basic {}", STANDARD.encode(pair));
    let pass = Pass::new(&header, None, Some(credential.user.clone()));
    pass.expect("base64 is a valid header")
}

/// A request to a token service.
struct TokenRequest<'a> {
    realm: &'a str,
    /// Whether the registry named it by TLS.
    by_tls: bool,
    service: Option<&'a str>,
    scopes: &'a [String],
    /// How long the head of the answer may take.
    within: Duration,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenRequest<'_> {
    async fn send(
        &self,
        transports: &Transports,
        credential: Option<&Credential>,
        access: &Access,
    ) -> Result<Pass, Fault> {
        let url = self.url(credential, access)?;
        let client = transports.client_for(&url)?;
        let mut request = Request::new(http::Method::GET, url);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        let shown = credential.map(basic);
        if let Some(pass) = &shown {
            pass.show(&mut request);
        }
        let asked = Instant::now();
        let response = timeout(self.within, client.execute(request)).await;
        let late = |_| self.fault("has not answered in time", true);
        let response = response.map_err(late)?.map_err(|error| {
            let fault = Fault::of_request(error);
            self.fault(&format!("fails: {}", fault.in_words()), fault.is_transient())
        })?;
        if !response.status().is_success() {
            return Err(match fault_of(response).await {
                Fault::Unauthorized { message, .. } => {
                    let with = shown.map_or(" without credentials".to_owned(), |p| p.in_words());
                    Fault::Unauthorized { with, message }
                }
                fault => self.fault(&format!("fails: {fault}"), fault.is_transient()),
            });
        }
        let answer = read_all(response, Limit::Most(MAX_TOKEN_ANSWER), Reading::default()).await?;
        let answer: TokenAnswer = serde_json::from_slice(&answer)
            .map_err(|_| self.fault("does not answer with a JSON object", false))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| self.fault("answers without a token", false))?;
        let life = answer.expires_in.map_or(DEFAULT_LIFE, Duration::from_secs);
        let expires = asked.checked_add(life.saturating_sub(MARGIN.min(life / 2)));
        Pass::new(&format!("Bearer {token}"), expires, credential.map(|c| c.user.clone()))
            .ok_or_else(|| self.fault("answers with a token that is no header", false))
    }

    fn url(&self, credential: Option<&Credential>, access: &Access) -> Result<Url, Fault> {
        let mut url: Url =
            self.realm.parse().map_err(|_| self.fault("has a malformed address", false))?;
        // The registry names the service: it must not talk us into sending passwords in clear.
        let registry = access.repository.split('/').next().unwrap_or_default();
        let clear = url.scheme() != "https" && !url.host_str().is_some_and(is_loopback);
        if clear && credential.is_some() && self.by_tls {
            let reason = "wants a password without TLS, which the registry itself uses: none was \
                sent; the registry has to name a realm with https";
            return Err(self.fault(reason, false));
        }
        if clear && credential.is_some() && !is_host_of(&url, registry) {
            return Err(self.fault("wants a password without TLS on another host", false));
        }
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(self.service.map(|service| ("service", service)));
            query.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
            query.extend_pairs(credential.map(|credential| ("account", &credential.user)));
        }
        Ok(url)
    }

    fn fault(&self, reason: &str, transient: bool) -> Fault {
        Fault::TokenService { realm: self.realm.to_owned(), reason: reason.to_owned(), transient }
    }
}

/// Whether `url` leads to the machine of the registry `host[:port]`, whatever the port.
fn is_host_of(url: &Url, registry: &str) -> bool {
    let base = Url::parse(&format!("http://{registry}/"));
    base.is_ok_and(|base| base.host().is_some() && base.host() == url.host())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Secret;

    #[test]
    fn regression_no_password_leaves_without_tls_where_the_registry_uses_tls() {
        let credential = Credential { user: "u".into(), password: Secret::new("p") };
        let access = Access::none("registry.example:5000");
        for (realm, by_tls, words) in [
            ("https://registry.example/token", true, ""),
            ("https://auth.example/token", true, ""),
            ("https://auth.example/token", false, ""),
            ("http://127.0.0.1:1/token", true, ""),
            ("http://registry.example/token", false, ""),
            ("http://registry.example/token", true, "which the registry itself uses"),
            ("http://auth.example/token", true, "without TLS"),
            ("http://auth.example/token", false, "on another host"),
        ] {
            let within = Duration::from_secs(1);
            let ask = TokenRequest { realm, by_tls, service: None, scopes: &[], within };
            assert!(ask.url(None, &access).is_ok(), "without a password: {realm}");
            match ask.url(Some(&credential), &access) {
                Ok(_) => assert_eq!(words, "", "{realm} {by_tls}"),
                Err(fault) => {
                    let told = fault.to_string();
                    assert!(!words.is_empty() && told.contains(words), "{told}");
                }
            }
        }
    }

    #[test]
    fn regression_a_host_is_not_taken_for_another_one_whose_name_begins_alike() {
        for (url, registry, same) in [
            ("http://registry.example/token", "registry.example:5000", true),
            ("http://registry.example:8080/token", "registry.example", true),
            ("http://[fd00::1]:80/token", "[fd00::1]:5000", true),
            ("http://registry.example/token", "registry.example.org:5000", false),
            ("http://10.0.0.1/token", "10.0.0.11:5000", false),
        ] {
            assert_eq!(is_host_of(&url.parse().unwrap(), registry), same, "{url} {registry}");
        }
    }
}

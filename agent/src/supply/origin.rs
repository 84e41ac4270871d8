//! The way of a node that shares to the registries.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use undermount_fs::source::{BlobStream, Scope, SourceError};

use super::RegistrySource;
use crate::image::Repository;
use crate::peer::origin::{Login, Origin, Password};
use crate::peer::wanted::{Kind, Wanted};
use crate::registry::client::Credential;

/// How long the registry may take for the first byte of a piece that others may wait for, too.
const ORIGIN: Duration = Duration::from_secs(60);
/// A credential is looked up again after this time.
const LOGIN_LIFE: Duration = Duration::from_secs(5);
/// What peers brought stands in the account under this name.
pub(super) const PEERS: &str = "peers";

/// The registries as this node reaches them, for itself and for others.
pub struct RegistryOrigin {
    registry: Arc<RegistrySource>,
    /// The registries that are read from for others, `host[:port]`.
    hosts: Mutex<HashSet<String>>,
    logins: Mutex<HashMap<Scope, (Instant, Option<Login>)>>,
    /// A password of this process alone.
    nobodys: String,
}

impl RegistryOrigin {
    /// The way through `registry`. Reads for others go to `hosts`, which the configuration names,
    /// and to the registries that this node has used itself.
    pub fn new(registry: Arc<RegistrySource>, hosts: impl IntoIterator<Item = String>) -> Self {
        let hosts = Mutex::new(hosts.into_iter().collect());
        let nobodys = crate::peer::keys::unguessable();
        Self { registry, hosts, logins: Mutex::default(), nobodys }
    }

    /// This node reads in the name of `scope` itself.
    pub(super) fn learn(&self, scope: &Scope) {
        let host = scope.host();
        self.registry.ledger().meter(scope, host);
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            hosts.insert(host.to_owned());
        }
    }

    async fn look_up(&self, scope: &Scope) -> Option<Login> {
        let known = self.logins().get(scope).cloned();
        if let Some((at, login)) = &known
            && at.elapsed() < LOGIN_LIFE
        {
            return login.clone();
        }
        let shown = match self.registry.shown_for(scope).await {
            Ok(shown) => shown,
            Err(error) => {
                // The registry client will say so, too, where it needs one.
                tracing::debug!(%scope, %error, "no credential");
                let known = known.and_then(|(_, login)| login);
                return Some(known.unwrap_or_else(|| self.nobodys(scope)));
            }
        };
        let login = login_of(scope, &shown);
        let mut logins = self.logins();
        logins.retain(|_, (at, _)| at.elapsed() < LOGIN_LIFE);
        logins.insert(scope.clone(), (Instant::now(), login.clone()));
        login
    }

    /// A login that no other node has: what may be private is not taken for public while nobody
    /// can tell.
    fn nobodys(&self, scope: &Scope) -> Login {
        let password = Password::new(self.nobodys.clone());
        Login { registry: scope.host().to_owned(), user: String::new(), password }
    }

    fn logins(&self) -> MutexGuard<'_, HashMap<Scope, (Instant, Option<Login>)>> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin for RegistryOrigin {
    fn reaches(&self, scope: &Scope) -> bool {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        scope.as_str().parse::<Repository>().is_ok() && hosts.contains(scope.host())
    }

    fn login<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Option<Login>> {
        // What is never read from needs no credential, and no helper that is asked for it.
        async move { if self.reaches(scope) { self.look_up(scope).await } else { None } }.boxed()
    }

    fn read<'a>(
        &'a self,
        wanted: &'a Wanted,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        let deadline = Instant::now() + ORIGIN;
        match wanted.kind {
            Kind::Manifest => self.registry.open_manifest(wanted, offset, deadline).boxed(),
            Kind::Blob => {
                let range = wanted.piece.range.start + offset..wanted.piece.range.end;
                self.registry.open_range(wanted, range, deadline).boxed()
            }
        }
    }

    fn brought(&self, scope: &Scope, bytes: u64) {
        let meter = self.registry.ledger().known_meter(scope, PEERS);
        meter.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What is `shown` at all the places where a repository is read, as one login: who lacks any of it
/// may not be able to read it.
fn login_of(scope: &Scope, shown: &[Credential]) -> Option<Login> {
    let join =
        |part: fn(&Credential) -> &str| shown.iter().map(part).collect::<Vec<_>>().join("\n");
    let password = Password::new(join(|credential| credential.password.expose()));
    let user = join(|credential| &credential.user);
    let login = Login { registry: scope.host().to_owned(), user, password };
    (!shown.is_empty()).then_some(login)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::client::testing::client;
    use crate::registry::client::{ClientConfig, Credentials};

    #[test]
    fn nothing_is_read_for_others_from_registries_that_the_node_does_not_know() {
        let registry = Arc::new(RegistrySource::new(client(|_| ()), Arc::default()));
        let hosts = ["r.example:5000".to_owned()];
        let origin = RegistryOrigin::new(registry, hosts);
        let reaches = |scope: &str| origin.reaches(&Scope::new(scope));
        assert!(reaches("r.example:5000/nova/nova-api"));
        for foreign in
            ["r.example/a", "169.254.169.254/a", "r.example:5000", "", "r.example:5000/A"]
        {
            assert!(!reaches(foreign), "{foreign}");
        }
        origin.learn(&Scope::new("quay.io/own/image"));
        assert!(reaches("quay.io/another/image"));
    }

    fn private_origin(change: impl FnOnce(&mut ClientConfig)) -> RegistryOrigin {
        let registry = Arc::new(RegistrySource::new(client(change), Arc::default()));
        RegistryOrigin::new(registry, ["r.example".to_owned()])
    }

    #[tokio::test]
    async fn regression_who_reads_with_a_certificate_does_not_read_in_public() {
        let directory = tempfile::tempdir().unwrap();
        let host = directory.path().join("r.example");
        std::fs::create_dir(&host).unwrap();
        let scope = Scope::new("r.example/private");
        let login = async |key: &str| {
            std::fs::write(host.join("client.key"), key).unwrap();
            let directories = vec![directory.path().to_owned()];
            let origin = private_origin(|config| config.certificate_dirs = directories);
            origin.login(&scope).await
        };
        assert_eq!(login("no certificate").await, None);
        std::fs::write(host.join("client.cert"), "certificate").unwrap();
        let [one, same, other] = [login("one").await, login("one").await, login("other").await];
        assert!(one.is_some() && one == same && one != other);
    }

    #[tokio::test]
    async fn regression_what_may_be_private_is_not_public_while_nobody_can_tell() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("auth.json");
        std::fs::write(&file, "{").unwrap();
        let credentials = Credentials::from_files(vec![file.clone()]);
        let origin = private_origin(|config| config.credentials = credentials);
        let scope = Scope::new("r.example/private");
        assert!(origin.login(&scope).await.is_some(), "it is taken for private");
        std::fs::write(&file, "{}").unwrap();
        assert!(origin.login(&scope).await.is_none(), "there is no login, and that is known");
        assert!(origin.login(&Scope::new("elsewhere.example/a")).await.is_none());
    }
}

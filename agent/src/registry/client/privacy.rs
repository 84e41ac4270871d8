//! What reading a repository takes that not everybody has: whoever reads without it reads in
//! public.

use super::certificates;
use super::credentials::Credential;
use super::error::Fault;
use super::{Client, Secret};
use crate::image::Repository;
use crate::image::reference::DEFAULT_HOST;

/// The user that a client certificate stands for.
const CERTIFICATE: &str = "client certificate";

impl Client {
    /// The logins and client certificates that this client shows at the places where it reads
    /// `repository`, mirrors included; none where everybody may read. In place of a password a
    /// certificate has the digest of its key.
    ///
    /// # Errors
    /// [`Fault`] where that cannot be told: a file is malformed, or a helper fails.
    pub async fn shown_for(&self, repository: &Repository) -> Result<Vec<Credential>, Fault> {
        let config = &self.shared.config;
        let mut shown = Vec::new();
        for place in self.places(repository, true)? {
            let login = config.credentials.lookup(&place.to_string()).await?;
            let mut keys = Vec::new();
            for authority in self.authorities(place.host()) {
                let key = certificates::client_key(&config.certificate_dirs, &authority)?;
                keys.extend(key.map(|key| Credential {
                    user: CERTIFICATE.to_owned(),
                    password: Secret::new(key.to_string()),
                }));
            }
            for credential in login.into_iter().chain(keys) {
                if !shown.contains(&credential) {
                    shown.push(credential);
                }
            }
        }
        Ok(shown)
    }

    /// The hosts that are asked for what is at the registry `host`.
    fn authorities(&self, host: &str) -> Vec<String> {
        if host != DEFAULT_HOST {
            return vec![host.to_owned()];
        }
        let mirror = self.shared.config.docker_mirror.iter();
        let mirror = mirror.map(|mirror| mirror.authority().to_owned());
        mirror.chain(["registry-1.docker.io".to_owned()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::client;
    use super::super::{Credentials, PlainHttp};
    use super::*;

    #[tokio::test]
    async fn certificates_count_like_logins() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("r.example:5000");
        std::fs::create_dir(&host).unwrap();
        let client = client(|config| {
            config.plain_http = PlainHttp::Never;
            config.certificate_dirs = vec![dir.path().to_owned()];
            config.credentials = Credentials::none();
        });
        let repository: Repository = "r.example:5000/a".parse().unwrap();
        let users = async || -> Vec<String> {
            let shown = client.shown_for(&repository).await.unwrap();
            shown.into_iter().map(|shown| shown.user).collect()
        };
        std::fs::write(host.join("ca.crt"), "a CA is no secret").unwrap();
        assert!(users().await.is_empty());
        std::fs::write(host.join("client.cert"), "certificate").unwrap();
        assert!(client.shown_for(&repository).await.is_err(), "its key is missing");
        std::fs::write(host.join("client.key"), "key").unwrap();
        assert_eq!(users().await, [CERTIFICATE]);
        let elsewhere = "r.example/a".parse().unwrap();
        assert!(client.shown_for(&elsewhere).await.unwrap().is_empty());
    }
}

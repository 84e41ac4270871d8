//! mTLS between nodes: each end shows a certificate that the cluster's CA has signed.
//!
//! Members are known by their addresses, which change, so it matters who has signed a certificate,
//! not whose name it has. Requests are signed with the cluster key all the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::host;

/// Why connections of peers cannot be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum PeerTlsError {
    /// A file cannot be read or is not PEM.
    #[error("cannot use `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// It has no certificate that can sign others.
    #[error("`{}` holds no certificate that can sign others", path.display())]
    Signer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: VerifierBuilderError,
    },
    /// Certificate and key cannot be used.
    #[error("`{}` cannot be used with its key", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// Accepts connections of clients whose certificate is signed by one in `ca`.
///
/// # Errors
/// [`PeerTlsError`] names the file that cannot be used.
pub fn acceptor(certificate: &Path, key: &Path, ca: &Path) -> Result<TlsAcceptor, PeerTlsError> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(ca)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|source| PeerTlsError::Signer { path: ca.to_owned(), source })?;
    let unusable = |source| PeerTlsError::Pair { path: certificate.to_owned(), source };
    let private = host::file::read(key)
        .map_err(pem::Error::Io)
        .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
        .map_err(|source| PeerTlsError::Read { path: key.to_owned(), source })?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(certificate)?, private)
        .map_err(unusable)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PeerTlsError> {
    host::file::read(path)
        .map_err(pem::Error::Io)
        .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect())
        .map_err(|source| PeerTlsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use reqwest::{Certificate, Identity};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    // P-256, good for a hundred years, made for these tests alone.
    const CA: &str = include_str!("tls/fixtures/cluster-ca.pem");
    const NODE: &str = include_str!("tls/fixtures/cluster-node.pem");
    const OTHER_CA: &str = include_str!("tls/fixtures/other-ca.pem");
    const OTHER_NODE: &str = include_str!("tls/fixtures/other-node.pem");

    fn files(ca: &str, node: &str) -> (TempDir, [PathBuf; 2]) {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("ca.pem"), dir.path().join("node.pem")];
        std::fs::write(&paths[0], ca).unwrap();
        std::fs::write(&paths[1], node).unwrap();
        (dir, paths)
    }

    fn client(ca: &str, node: Option<&str>) -> reqwest::Client {
        let ca = Certificate::from_pem(ca.as_bytes()).unwrap();
        let builder = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([ca])
            .tls_danger_accept_invalid_hostnames(true);
        let builder = match node {
            Some(node) => builder.identity(Identity::from_pem(node.as_bytes()).unwrap()),
            None => builder,
        };
        builder.build().unwrap()
    }

    /// Answers one connection after the other, those that get through the handshake.
    async fn serve(tls: TlsAcceptor) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = tls.accept(stream).await else { continue };
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                let _ = stream.shutdown().await;
            }
        });
        url
    }

    #[tokio::test]
    async fn only_who_has_a_certificate_of_the_cluster_gets_through() {
        // Fails only where there is one already.
        let _ = default_provider().install_default();
        let (_dir, [ca, node]) = files(CA, NODE);
        let url = serve(acceptor(&node, &node, &ca).unwrap()).await;
        let get = |client: reqwest::Client| {
            let url = url.clone();
            async move { client.get(url).send().await.map(|answer| answer.status().as_u16()) }
        };
        assert_eq!(get(client(CA, Some(NODE))).await.unwrap(), 200);
        assert!(get(client(CA, None)).await.is_err(), "a client without a certificate");
        assert!(get(client(CA, Some(OTHER_NODE))).await.is_err(), "one of another cluster");
        assert!(get(client(OTHER_CA, Some(NODE))).await.is_err(), "a server of another cluster");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let (dir, [ca, node]) = files(CA, NODE);
        let missing = dir.path().join("missing.pem");
        for (certificate, key, signer) in
            [(&missing, &node, &ca), (&node, &missing, &ca), (&node, &node, &missing)]
        {
            let error = acceptor(certificate, key, signer).err().unwrap().to_string();
            assert!(error.contains("missing.pem"), "{error}");
        }
        // A CA file without its CA, and a key of another certificate.
        let (_other, [_, other]) = files(OTHER_CA, OTHER_NODE);
        assert!(matches!(acceptor(&node, &other, &ca), Err(PeerTlsError::Pair { .. })));
        std::fs::write(&ca, "").unwrap();
        assert!(acceptor(&node, &node, &ca).is_err());
    }
}

//! mTLS between nodes: each end shows a certificate that the cluster's CA has signed.
//!
//! Members are known by their addresses, which change, so of a certificate it counts who has
//! signed it, not whose name it has. The cluster key is asked for all the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// Connections of peers cannot be encrypted.
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
    /// A certificate that cannot sign.
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

/// Takes connections of those whose certificate is signed by one in `ca`.
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
    let private = PrivateKeyDer::from_pem_file(key)
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
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| PeerTlsError::Read { path: path.to_owned(), source })
}

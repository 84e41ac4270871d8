//! TLS: certificate and key from PEM files, read again when they change, so that a renewed
//! certificate needs no restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use crate::host;

/// Where the certificate is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate and those that sign it, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

/// Why connections cannot be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or is not PEM.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// There is no certificate in the file.
    #[error("`{}` holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// Certificate and key cannot be used together.
    #[error("`{}` and `{}` cannot be used together", files.certificate.display(),
        files.key.display())]
    Pair {
        /// The files.
        files: TlsFiles,
        /// What is wrong.
        source: rustls::Error,
    },
    /// No version of the protocol is left.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// Encrypts connections with the certificate of `files`, HTTP/2 preferred.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor(files: TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let certificates = Certificates::read(files)?;
    let mut config = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificate, whatever name a client asks for.
#[derive(Debug)]
struct Certificates {
    files: TlsFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    modified: [Option<SystemTime>; 2],
}

impl Certificates {
    fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let current = Current::read(&files)?;
        Ok(Self { files, current: Mutex::new(current) })
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.modified != modified(&self.files) {
            match Current::read(&self.files) {
                Ok(read) => {
                    tracing::info!("certificate read again");
                    *current = read;
                }
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "certificate stays as it was"
                ),
            }
        }
        Some(Arc::clone(&current.key))
    }
}

impl Current {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        // Asked before, so that a change in between is seen the next time.
        let modified = modified(files);
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Read { path, source }
        };
        let bytes = |path| host::file::read(path).map_err(pem::Error::Io);
        let chain = bytes(&files.certificate)
            .and_then(|pem| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>())
            .map_err(read(&files.certificate))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate(files.certificate.clone()));
        }
        let key = bytes(&files.key)
            .and_then(|pem| PrivateKeyDer::from_pem_slice(&pem))
            .map_err(read(&files.key))?;
        let key = CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|source| TlsError::Pair { files: files.clone(), source })?;
        Ok(Self { key: Arc::new(key), modified })
    }
}

fn modified(files: &TlsFiles) -> [Option<SystemTime>; 2] {
    [&files.certificate, &files.key]
        .map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

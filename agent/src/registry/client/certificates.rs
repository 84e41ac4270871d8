//! Certificates for single registries, as containers-certs.d(5) lays them out.
//!
//! ```text
//! certs.d/host[:port]/ca.crt          any *.crt: a CA to trust for this registry
//!                     client.cert     any *.cert: shows who we are, with the key of
//!                     client.key      the same name
//! ```

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Identity};
use undermount_fs::digest::Digest;

use crate::host;

/// A certificate file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the certificate file {}: {reason}", path.display())]
pub struct CertificateError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why not.
    pub reason: String,
}

/// What a directory says about one registry.
#[derive(Default)]
pub(super) struct HostCertificates {
    /// CAs beside those of the system.
    pub roots: Vec<Certificate>,
    /// Who we are.
    pub identity: Option<Identity>,
}

/// The certificates for `authority` (`host[:port]` of a URL, without the default port) from the
/// first of `directories` that has any; `None` where none has.
pub(super) fn find(
    directories: &[PathBuf],
    authority: &str,
) -> Result<Option<HostCertificates>, CertificateError> {
    files_for(directories, authority)?.map(|files| read(&files)).transpose()
}

/// The digest of the keys by which `authority` is shown who we are, where there are any.
pub(super) fn client_key(
    directories: &[PathBuf],
    authority: &str,
) -> Result<Option<Digest>, CertificateError> {
    let files = files_for(directories, authority)?.unwrap_or_default();
    let mut keys = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "cert")) {
        keys.extend(bytes(&path.with_extension("key"))?);
    }
    Ok((!keys.is_empty()).then(|| Digest::of(&keys)))
}

/// The files in the first of `directories` that has something for `authority`, sorted.
fn files_for(
    directories: &[PathBuf],
    authority: &str,
) -> Result<Option<Vec<PathBuf>>, CertificateError> {
    let names = [authority.to_owned(), format!("{authority}:443")];
    let places = directories.iter().flat_map(|directory| names.iter().map(|n| directory.join(n)));
    for place in places {
        match std::fs::read_dir(&place) {
            Ok(entries) => {
                let mut files = Vec::new();
                for entry in entries {
                    files.push(entry.map_err(|error| wrong(&place, error))?.path());
                }
                files.sort();
                return Ok(Some(files));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(wrong(&place, error)),
        }
    }
    Ok(None)
}

fn read(files: &[PathBuf]) -> Result<HostCertificates, CertificateError> {
    let mut found = HostCertificates::default();
    for path in files {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => found.roots.extend(
                Certificate::from_pem_bundle(&bytes(path)?).map_err(|error| wrong(path, error))?,
            ),
            Some("cert") => {
                let mut pair = bytes(path)?;
                pair.push(b'\n');
                pair.extend(bytes(&path.with_extension("key"))?);
                let identity = Identity::from_pem(&pair).map_err(|error| wrong(path, error))?;
                found.identity = Some(identity);
            }
            _ => {}
        }
    }
    Ok(found)
}

fn bytes(path: &Path) -> Result<Vec<u8>, CertificateError> {
    host::file::read(path).map_err(|error| wrong(path, error))
}

fn wrong(path: &Path, reason: impl ToString) -> CertificateError {
    CertificateError { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(directories: &[PathBuf]) -> String {
        find(directories, "h:1").err().unwrap().to_string()
    }

    #[test]
    fn a_registry_without_a_directory_has_no_certificates_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(&[dir.path().into(), "/does/not/exist".into()], "h:1").unwrap().is_none());
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("h:1");
        let directories = [dir.path().to_owned()];
        std::fs::create_dir(&host).unwrap();
        assert!(find(&directories, "h:1").unwrap().unwrap().roots.is_empty());
        let pem = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        std::fs::write(host.join("ca.crt"), pem).unwrap();
        let words = message(&directories);
        assert!(words.contains("h:1/ca.crt: "), "{words}");
        std::fs::remove_file(host.join("ca.crt")).unwrap();
        std::fs::write(host.join("client.cert"), "x").unwrap();
        assert!(message(&directories).contains("h:1/client.key: No such file"));
        std::fs::write(host.join("client.key"), "x").unwrap();
        assert!(message(&directories).contains("h:1/client.cert: "));
    }

    #[test]
    fn the_default_port_may_be_written() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("h:443")).unwrap();
        assert!(find(&[dir.path().into()], "h").unwrap().is_some());
    }
}

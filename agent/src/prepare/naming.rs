//! Names of an entry's images: where each is read, and what it is called at its destination.
//!
//! An image is read from the registry that its name begins with, or from files of this host: its
//! name then begins with their form (`namespace: oci:/srv/set:quay.io/tripleo`), or the entry's
//! `pull_source` (or the flag `--from`) is the form and path and the name stays what it is.

use super::copy::{Location, split_host};

/// Where the image called `imagename` is read.
pub fn source(pull_source: Option<&str>, imagename: &str) -> String {
    match pull_source {
        None => imagename.to_owned(),
        Some(files) if Location::has_transport(files) => {
            format!("{}:{imagename}", files.trim_end_matches(':'))
        }
        Some(registry) => format!("{registry}/{imagename}"),
    }
}

/// Whether the image is read from files of this host, where no node can pull it.
pub fn is_on_this_host(pull_source: Option<&str>, imagename: &str) -> bool {
    Location::has_transport(pull_source.unwrap_or(imagename))
}

/// The registry that the image is read from, unless it is files.
pub fn registry<'a>(pull_source: Option<&'a str>, imagename: &'a str) -> Option<&'a str> {
    let source = pull_source.unwrap_or(imagename);
    (!Location::has_transport(source)).then(|| source.split('/').next().unwrap_or_default())
}

/// What the image is called below its destination: its name without the registry. With a
/// `pull_source` that is a registry, the name has none.
pub fn pushed<'a>(pull_source: Option<&str>, imagename: &'a str) -> &'a str {
    if Location::has_transport(imagename) {
        return split_host(name_in_files(imagename)).1;
    }
    match (pull_source, imagename.split_once('/')) {
        (Some(files), _) if Location::has_transport(files) => split_host(imagename).1,
        (None, Some((_registry, name))) => name,
        _ => imagename,
    }
}

/// The name of an image in files. One that is a tag alone belongs to the last part of the path:
/// `oci:/srv/set/nova:t` is `nova:t`.
fn name_in_files(imagename: &str) -> &str {
    let rest = imagename.split_once(':').map_or(imagename, |(_form, rest)| rest);
    if imagename.starts_with("containers-storage:") {
        return rest.rsplit_once(']').map_or(rest, |(_store, name)| name);
    }
    match rest.split_once(':') {
        Some((_path, name)) if name.contains(['/', ':']) => name,
        _ => rest.rsplit_once('/').map_or(rest, |(_directory, name)| name),
    }
}

/// The name of an image up to its tag.
pub fn without_tag(imagename: &str) -> &str {
    match imagename.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => imagename,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_where_their_entry_says() {
        for (pull_source, imagename, read, name, host) in [
            (None, "q.io/ns/a:t", "q.io/ns/a:t", "ns/a:t", Some("q.io")),
            (Some("q.io"), "ns/a:t", "q.io/ns/a:t", "ns/a:t", Some("q.io")),
            (Some("oci:/srv/set"), "q.io/ns/a:t", "oci:/srv/set:q.io/ns/a:t", "ns/a:t", None),
            (Some("oci:/srv/set"), "ns/a:t", "oci:/srv/set:ns/a:t", "ns/a:t", None),
            (
                Some("containers-storage:"),
                "localhost/ns/a:t",
                "containers-storage:localhost/ns/a:t",
                "ns/a:t",
                None,
            ),
            (None, "oci:/srv/set:q.io/ns/a:t", "oci:/srv/set:q.io/ns/a:t", "ns/a:t", None),
            (None, "oci:/srv/set/a:t", "oci:/srv/set/a:t", "a:t", None),
            (None, "docker-archive:a.tar:ns/a:t", "docker-archive:a.tar:ns/a:t", "ns/a:t", None),
            (
                None,
                "containers-storage:[overlay@/a+/b]q.io/ns/a:t",
                "containers-storage:[overlay@/a+/b]q.io/ns/a:t",
                "ns/a:t",
                None,
            ),
        ] {
            assert_eq!(source(pull_source, imagename), read);
            assert_eq!(pushed(pull_source, imagename), name);
            assert_eq!(registry(pull_source, imagename), host);
            assert_eq!(is_on_this_host(pull_source, imagename), host.is_none());
        }
    }

    #[test]
    fn a_port_is_not_a_tag() {
        assert_eq!(without_tag("r:5000/a/b:t"), "r:5000/a/b");
        assert_eq!(without_tag("r:5000/a/b"), "r:5000/a/b");
    }
}

//! How names are normalised, and what is said of those that are none.

use proptest::prelude::*;

use super::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn names_are_normalised_as_docker_and_podman_do() {
    let digest = format!("sha256:{HEX}");
    for (typed, canonical) in [
        ("nginx", "docker.io/library/nginx:latest".to_owned()),
        ("nginx:1.25", "docker.io/library/nginx:1.25".to_owned()),
        ("library/nginx", "docker.io/library/nginx:latest".to_owned()),
        ("kolla/nova-api", "docker.io/kolla/nova-api:latest".to_owned()),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
        ("localhost/nova", "localhost/nova:latest".to_owned()),
        ("localhost:5000/nova", "localhost:5000/nova:latest".to_owned()),
        ("quay.io/a/b/c:v1", "quay.io/a/b/c:v1".to_owned()),
        ("Quay.IO/a:V1", "quay.io/a:V1".to_owned()),
        ("127.0.0.1:8787/t/x", "127.0.0.1:8787/t/x:latest".to_owned()),
        ("[::1]:5000/t/x:a", "[::1]:5000/t/x:a".to_owned()),
        ("[fe80::1]/x", "[fe80::1]/x:latest".to_owned()),
        (&format!("quay.io/a@{digest}"), format!("quay.io/a@{digest}")),
        (&format!("quay.io/a:t@{digest}"), format!("quay.io/a:t@{digest}")),
        (
            "undercloud.ctlplane:8787/a__b/c---d.e_f",
            "undercloud.ctlplane:8787/a__b/c---d.e_f:latest".to_owned(),
        ),
    ] {
        let parsed: Reference = typed.parse().unwrap();
        assert_eq!(parsed.to_string(), canonical);
        assert_eq!(canonical.parse::<Reference>().unwrap(), parsed);
    }
}

#[test]
fn a_reference_has_parts() {
    let reference: Reference = format!("[::1]:5000/a/b:t@sha256:{HEX}").parse().unwrap();
    assert_eq!(reference.repository().host(), "[::1]:5000");
    assert_eq!(reference.repository().path(), "a/b");
    assert_eq!(reference.repository().scope().as_str(), "[::1]:5000/a/b");
    assert_eq!(reference.tag().unwrap().as_str(), "t");
    assert_eq!(reference.identifier(), format!("sha256:{HEX}"));
    assert_eq!("quay.io/a:t".parse::<Reference>().unwrap().identifier(), "t");
}

#[test]
fn errors_name_what_is_wrong() {
    let long = format!("quay.io/{}", "a/".repeat(130) + "a");
    let long_tag = format!("quay.io/a:{}", "t".repeat(129));
    for (text, part) in [
        ("", "empty"),
        ("docker://quay.io/a", "`docker://`"),
        ("quay.io/", "missing after the registry host"),
        ("10.0.0.1", "missing after the registry host"),
        ("quay.io//a", "empty path component"),
        ("quay.io/a/", "empty path component"),
        ("/a", "empty path component"),
        ("quay.io/Nova", "`Nova` has upper-case"),
        ("Nova", "`Nova` has upper-case"),
        ("quay.io/a..b", "`a..b`"),
        ("quay.io/_a", "`_a`"),
        ("quay.io/a b", "`a b`"),
        ("quay.io/../etc", "`..`"),
        ("quay.io:0/a", "`0` is not a port"),
        ("quay.io:65536/a", "`65536` is not a port"),
        ("quay.io:+80/a", "`+80` is not a port"),
        ("quay.io:/a", "`` is not a port"),
        ("-x.io/a", "`-x.io` is not a registry host"),
        ("[::1/a", "`[::1` is not a registry host"),
        ("[::g]/a", "`[::g]` is not a registry host"),
        ("[::1]5000/a", "is not a registry host"),
        ("quay.io/a:", "tag ``"),
        ("quay.io/a:.b", "tag `.b`"),
        ("quay.io/a:b:c", "tag `b:c`"),
        ("quay.io/a@sha256:12", "`sha256:12` is not a digest"),
        ("quay.io/a@sha512:12", "`sha512:12` is not a digest"),
        ("quay.io/ü", "`ü`"),
        (&long, "longer than 255"),
        (&long_tag, "at most 128"),
    ] {
        let message = text.parse::<Reference>().unwrap_err().to_string();
        assert!(message.contains(part), "{text}: {message}");
        assert!(message.contains(text), "{message}");
    }
}

#[test]
fn a_repository_has_neither_tag_nor_digest() {
    assert_eq!("nova".parse::<Repository>().unwrap().as_str(), "docker.io/library/nova");
    assert_eq!(Repository::new("h:1", "a/b").unwrap().as_str(), "h:1/a/b");
    assert!(Repository::new("h", "a").is_err(), "would be read as docker.io/h/a");
    for text in ["quay.io/a:b".to_owned(), format!("quay.io/a@sha256:{HEX}")] {
        let message = text.parse::<Repository>().unwrap_err().to_string();
        assert!(message.contains("only a repository"), "{message}");
    }
}

proptest! {
    #[test]
    fn the_canonical_form_parses_to_itself(
        text in r"(([a-z0-9]{1,4}\.[a-z]{2,3}|localhost|\[::[0-9a-f]{1,4}\])(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,5}(/[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}){0,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,6})?(@sha256:[0-9a-f]{64})?"
    ) {
        let parsed: Reference = text.parse().unwrap();
        prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed.clone());
        let repository = parsed.repository();
        prop_assert_eq!(&repository.as_str().parse::<Repository>().unwrap(), repository);
        prop_assert_eq!(&Repository::new(repository.host(), repository.path()).unwrap(), repository);
    }

    #[test]
    fn no_text_panics_and_whatever_parses_round_trips(text in "[a-zA-Z0-9:/@._ü\\[\\]-]{0,40}") {
        if let Ok(parsed) = text.parse::<Reference>() {
            prop_assert_eq!(parsed.to_string().parse::<Reference>().unwrap(), parsed);
        }
    }
}

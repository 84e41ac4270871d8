//! `undermount registry` against the distribution-spec 1.1, request by request: what its
//! conformance suite checks, and what a client must not get away with.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::net::Shutdown;

use serde_json::{Value, json};
use undermount_tests::distribution::{Api, PUSHES, range, sha256, sha512};
use undermount_tests::registry::Registry;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

struct Fixture {
    _root: tempfile::TempDir,
    _registry: Registry,
    api: Api,
}

fn fixture_with(arguments: &[&str]) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), arguments);
    let api = Api(registry.address().to_owned());
    Fixture { _root: root, _registry: registry, api }
}

fn fixture() -> Fixture {
    fixture_with(&[])
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() })
}

/// An image of one layer that is no archive, so that it has no index.
fn image(api: &Api, repository: &str, text: &str) -> Value {
    for bytes in ["{}", text] {
        api.push_blob(repository, bytes.as_bytes());
    }
    json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": descriptor(CONFIG, b"{}"),
        "layers": [descriptor(LAYER, text.as_bytes())],
    })
}

/// An artifact of type `kind` about the manifest `subject`.
fn artifact(kind: &str, subject: &Value) -> Value {
    let subject = subject.to_string();
    json!({
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "artifactType": kind,
        "config": descriptor(EMPTY, b"{}"),
        "layers": [descriptor(EMPTY, b"{}")],
        "subject": descriptor(IMAGE, subject.as_bytes()),
        "annotations": { "key": kind },
    })
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * at % 251) as u8).collect()
}

#[test]
fn the_base_says_that_the_api_is_there() {
    let f = fixture();
    let answer = f.api.get("/v2/");
    assert_eq!(answer.expect(200).header("docker-distribution-api-version"), Some("registry/2.0"));
    assert_eq!(f.api.get("/v3/").error(404), "UNSUPPORTED");
}

#[test]
fn what_is_not_there_is_unknown_by_its_own_code() {
    let f = fixture();
    let digest = sha256(b"nothing");
    assert_eq!(f.api.get("/v2/a/tags/list").error(404), "NAME_UNKNOWN");
    assert_eq!(f.api.get("/v2/a/manifests/latest").error(404), "MANIFEST_UNKNOWN");
    assert_eq!(f.api.get(&format!("/v2/a/manifests/{digest}")).error(404), "MANIFEST_UNKNOWN");
    assert_eq!(f.api.get(&format!("/v2/a/blobs/{digest}")).error(404), "BLOB_UNKNOWN");
    let upload = format!("/v2/a/blobs/uploads/{}", "0".repeat(32));
    assert_eq!(f.api.get(&upload).error(404), "BLOB_UPLOAD_UNKNOWN");
    f.api.head(&format!("/v2/a/blobs/{digest}")).expect(404);
}

#[test]
fn malformed_names_are_refused_by_their_own_code() {
    let f = fixture();
    for (path, status, code) in [
        ("/v2/A/tags/list", 400, "NAME_INVALID"),
        ("/v2/a/../b/tags/list", 400, "NAME_INVALID"),
        ("/v2/..%2f..%2fetc/tags/list", 400, "NAME_INVALID"),
        ("/v2/_blobs/tags/list", 400, "NAME_INVALID"),
        ("/v2/a/manifests/.hidden", 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/manifests/sha256:baddigeststring", 400, "DIGEST_INVALID"),
        ("/v2/a/blobs/sha256:..", 400, "DIGEST_INVALID"),
        ("/v2/a/referrers/latest", 400, "DIGEST_INVALID"),
        ("/v2/a/tags/list?n=many", 400, "UNSUPPORTED"),
    ] {
        assert_eq!(f.api.get(path).error(status), code, "{path}");
    }
    let put = f.api.send("PUT", "/v2/a/manifests/sha256:baddigeststring", &[], b"{}");
    assert_eq!(put.error(400), "DIGEST_INVALID");
    assert_eq!(f.api.send("PUT", "/v2/a/tags/list", &[], b"").error(405), "UNSUPPORTED");
}

#[test]
fn blobs_are_pushed_in_every_way_under_either_digest() {
    let f = fixture();
    for (number, (way, push)) in PUSHES.into_iter().enumerate() {
        for hash in [sha256, sha512] {
            let blob = bytes(3000 + number);
            let digest = hash(&blob);
            let answer = push(&f.api, "a/b", &digest, &blob);
            let location = answer.expect(201).location();
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "{way}");
            let pulled = f.api.get(location);
            assert_eq!(pulled.expect(200).body, blob, "{way}");
            assert_eq!(pulled.header("docker-content-digest"), Some(digest.as_str()));
            assert_eq!(pulled.header("etag"), Some(format!("\"{digest}\"").as_str()));
            let head = f.api.head(location);
            let length = blob.len().to_string();
            assert_eq!(head.expect(200).header("content-length"), Some(length.as_str()));
            assert!(head.body.is_empty());
        }
    }
}

#[test]
fn a_wrong_digest_is_refused_in_every_way_of_pushing() {
    let f = fixture();
    for (way, push) in PUSHES {
        for hash in [sha256, sha512] {
            let digest = hash(b"something else");
            assert_eq!(
                push(&f.api, "a/b", &digest, &bytes(3000)).error(400),
                "DIGEST_INVALID",
                "{way}"
            );
            f.api.get(&format!("/v2/a/b/blobs/{digest}")).expect(404);
        }
    }
}

#[test]
fn empty_blobs_are_blobs() {
    let f = fixture();
    let digest = f.api.push_blob("a", b"");
    let answer = f.api.get(&format!("/v2/a/blobs/{digest}"));
    assert_eq!(answer.expect(200).header("content-length"), Some("0"));
}

#[test]
fn ranges_of_a_blob_are_served() {
    let f = fixture();
    let blob = bytes(2048);
    let path = format!("/v2/a/blobs/{}", f.api.push_blob("a", &blob));
    for (wanted, start, end) in [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
    ] {
        let answer = f.api.send("GET", &path, &[("Range", wanted)], b"");
        assert_eq!(answer.expect(206).body, blob[start..end], "{wanted}");
        let length = (end - start).to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()));
        let content_range = format!("bytes {}/2048", range(start, end));
        assert_eq!(answer.header("content-range"), Some(content_range.as_str()));
    }
    for wanted in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-"] {
        let answer = f.api.send("GET", &path, &[("Range", wanted)], b"");
        assert_eq!(answer.expect(416).header("content-range"), Some("bytes */2048"), "{wanted}");
    }
}

#[test]
fn several_ranges_come_as_parts() {
    let f = fixture();
    let blob = bytes(2048);
    let path = format!("/v2/a/blobs/{}", f.api.push_blob("a", &blob));
    let answer = f.api.send("GET", &path, &[("Range", "bytes=0-9,100-109,-10")], b"");
    let content_type = answer.expect(206).header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    let mut expected = Vec::new();
    for part in [0..10, 100..110, 2038..2048] {
        let head = format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n\
             Content-Range: bytes {}/2048\r\n\r\n",
            range(part.start, part.end)
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&blob[part]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert_eq!(answer.body, expected);
}

#[test]
fn conditions_are_honoured() {
    let f = fixture();
    let digest = f.api.push_blob("a", &bytes(2048));
    let path = format!("/v2/a/blobs/{digest}");
    let etag = format!("\"{digest}\"");
    f.api.send("GET", &path, &[("If-None-Match", &etag)], b"").expect(304);
    let range = ("Range", "bytes=0-9");
    f.api.send("GET", &path, &[range, ("If-Range", &etag)], b"").expect(206);
    f.api.send("GET", &path, &[range, ("If-Range", "\"other\"")], b"").expect(200);
}

#[test]
fn a_chunk_out_of_order_is_refused_and_the_upload_goes_on() {
    let f = fixture();
    let blob = bytes(3000);
    let location = f.api.begin("a");
    let send = |method: &str, path: &str, start: usize, end: usize| {
        let header = range(start, end);
        f.api.send(method, path, &[("Content-Range", &header)], &blob[start..end])
    };
    let ahead = send("PATCH", &location, 1000, 2000);
    assert_eq!(ahead.error(416), "BLOB_UPLOAD_INVALID");
    assert_eq!(ahead.header("location"), Some(location.as_str()));
    send("PATCH", &location, 0, 1000).expect(202);
    send("PATCH", &location, 0, 1000).expect(416);
    let status = f.api.get(&location);
    assert_eq!(status.expect(204).header("range"), Some("0-999"));
    let last = format!("{location}?digest={}", sha256(&blob));
    send("PUT", &last, 2000, 3000).expect(416);
    send("PATCH", &location, 1000, 2000).expect(202);
    send("PUT", &last, 2000, 3000).expect(201);
}

#[test]
fn a_chunk_of_another_length_than_it_says_leaves_the_upload_as_it_was() {
    let f = fixture();
    let blob = bytes(1000);
    let location = f.api.begin("a");
    for lie in ["0-99", "0-4999"] {
        let answer = f.api.send("PATCH", &location, &[("Content-Range", lie)], &blob);
        assert_eq!(answer.error(400), "SIZE_INVALID", "{lie}");
    }
    f.api.send("PATCH", &location, &[("Content-Range", "0-999")], &blob).expect(202);
    f.api.send("PUT", &format!("{location}?digest={}", sha256(&blob)), &[], b"").expect(201);
}

#[test]
fn a_body_shorter_than_its_content_length_is_no_blob_and_can_be_continued() {
    let f = fixture();
    let blob = bytes(100_000);
    let (location, digest) = (f.api.begin("a"), sha256(&blob));
    let path = format!("{location}?digest={digest}");
    let mut stream = f.api.open("PUT", &path, &[("Content-Length", "100000")]);
    stream.write_all(&blob[..60_000]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    drop(stream);
    f.api.get(&format!("/v2/a/blobs/{digest}")).expect(404);
    let have: usize = {
        let status = f.api.get(&location);
        let range = status.expect(204).header("range").unwrap().to_owned();
        range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1
    };
    assert_eq!(have, 60_000, "what came is kept");
    f.api
        .send("PUT", &path, &[("Content-Range", &range(have, 100_000))], &blob[have..])
        .expect(201);
    assert_eq!(f.api.get(&format!("/v2/a/blobs/{digest}")).expect(200).body, blob);
}

#[test]
fn a_cancelled_upload_is_gone() {
    let f = fixture();
    let location = f.api.begin("a");
    f.api.send("PATCH", &location, &[], b"some").expect(202);
    f.api.send("DELETE", &location, &[], b"").expect(204);
    assert_eq!(f.api.get(&location).error(404), "BLOB_UPLOAD_UNKNOWN");
    assert_eq!(f.api.send("PATCH", &location, &[], b"more").error(404), "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn an_upload_belongs_to_its_repository() {
    let f = fixture();
    let location = f.api.begin("a").replace("/v2/a/", "/v2/b/");
    assert_eq!(f.api.send("PATCH", &location, &[], b"x").error(404), "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn blobs_are_mounted_from_where_they_are() {
    let f = fixture();
    let digest = f.api.push_blob("source", b"shared");
    let mount = |repository: &str, query: &str| {
        let path = format!("/v2/{repository}/blobs/uploads/?mount={digest}{query}");
        f.api.send("POST", &path, &[], b"")
    };
    f.api.get(&format!("/v2/a/blobs/{digest}")).expect(404);
    let location = mount("a", "&from=source").expect(201).location().to_owned();
    assert_eq!(f.api.get(&location).expect(200).body, b"shared");
    mount("b", "").expect(201);
    assert!(mount("c", "&from=elsewhere").expect(202).header("location").is_some());
    f.api.get(&format!("/v2/c/blobs/{digest}")).expect(404);
    mount("c", "&from=..%2fsource").expect(202);
    let unknown = format!("/v2/c/blobs/uploads/?mount={}&from=source", sha256(b"?"));
    f.api.send("POST", &unknown, &[], b"").expect(202);
}

#[test]
fn manifests_come_back_byte_by_byte() {
    let f = fixture();
    let mut manifest = image(&f.api, "a/b", "layer");
    manifest["custom"] = json!({ "kept": [1, 2.50, null] });
    let text = format!("  {manifest:#}\n\n");
    let put =
        f.api.send("PUT", "/v2/a/b/manifests/v1", &[("Content-Type", IMAGE)], text.as_bytes());
    let digest = sha256(text.as_bytes());
    assert_eq!(put.expect(201).header("docker-content-digest"), Some(digest.as_str()));
    let location = put.location();
    for path in [location, "/v2/a/b/manifests/v1"] {
        for accept in [IMAGE, "*/*", "application/vnd.docker.distribution.manifest.v1+json"] {
            let answer = f.api.send("GET", path, &[("Accept", accept)], b"");
            assert_eq!(answer.expect(200).body, text.as_bytes());
            assert_eq!(answer.header("content-type"), Some(IMAGE));
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()));
        }
        let head = f.api.head(path);
        let length = text.len().to_string();
        assert_eq!(head.expect(200).header("content-length"), Some(length.as_str()));
        let etag = format!("\"{digest}\"");
        f.api.send("GET", path, &[("If-None-Match", &etag)], b"").expect(304);
    }
    f.api.get(&format!("/v2/a/manifests/{digest}")).expect(404);
}

#[test]
fn manifests_are_pushed_by_either_digest_and_by_tag_parameters() {
    let f = fixture();
    let manifest = image(&f.api, "a", "layer").to_string();
    let put = |reference: &str, query: &str| {
        let path = format!("/v2/a/manifests/{reference}{query}");
        f.api.send("PUT", &path, &[("Content-Type", IMAGE)], manifest.as_bytes())
    };
    for digest in [sha256(manifest.as_bytes()), sha512(manifest.as_bytes())] {
        let answer = put(&digest, "?tag=one&tag=two");
        assert_eq!(answer.expect(201).header("docker-content-digest"), Some(digest.as_str()));
        let tags: Vec<_> = answer
            .headers
            .iter()
            .filter(|(name, _)| name == "oci-tag")
            .map(|(_, tag)| tag)
            .collect();
        assert_eq!(tags, ["one", "two"]);
        let tagged = f.api.get("/v2/a/manifests/two");
        assert_eq!(tagged.expect(200).header("docker-content-digest"), Some(digest.as_str()));
    }
    assert_eq!(put(&sha256(b"other"), "").error(400), "DIGEST_INVALID");
    assert_eq!(put(&sha512(b"other"), "").error(400), "DIGEST_INVALID");
    assert_eq!(put(&sha256(manifest.as_bytes()), "?tag=.bad").error(400), "UNSUPPORTED");
}

#[test]
fn a_manifest_needs_what_it_names() {
    let f = fixture();
    let complete = image(&f.api, "a", "layer");
    let put = |manifest: &Value| {
        f.api.send("PUT", "/v2/a/manifests/x", &[], manifest.to_string().as_bytes())
    };
    let mut manifest = complete.clone();
    manifest["layers"][0] = descriptor(LAYER, b"never pushed");
    let answer = put(&manifest);
    assert_eq!(answer.error(400), "MANIFEST_BLOB_UNKNOWN");
    let detail = &answer.json()["errors"][0]["detail"]["digest"];
    assert_eq!(*detail, sha256(b"never pushed"));
    manifest["layers"][0]["mediaType"] =
        json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
    put(&manifest).expect(201);
    let mut manifest = complete.clone();
    manifest["layers"][0]["size"] = json!(4);
    assert_eq!(put(&manifest).error(400), "SIZE_INVALID");
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [descriptor(IMAGE, complete.to_string().as_bytes())],
    });
    assert_eq!(put(&index).error(400), "MANIFEST_BLOB_UNKNOWN");
    f.api.push_manifest("a", "child", &complete);
    put(&index).expect(201);
    let elsewhere = complete.to_string();
    let answer = f.api.send("PUT", "/v2/b/manifests/x", &[], elsewhere.as_bytes());
    assert_eq!(answer.json()["errors"].as_array().unwrap().len(), 2, "one for each blob");
}

#[test]
fn manifests_that_mislead_are_refused() {
    let f = fixture();
    let complete = image(&f.api, "a", "layer");
    let mut both = complete.clone();
    both["manifests"] = json!([]);
    for (manifest, content_type) in [
        (both.to_string(), IMAGE),
        (complete.to_string(), INDEX),
        ("not json".to_owned(), IMAGE),
        (json!({ "schemaVersion": 1, "fsLayers": [] }).to_string(), ""),
    ] {
        let headers = [("Content-Type", content_type)];
        let answer = f.api.send("PUT", "/v2/a/manifests/x", &headers, manifest.as_bytes());
        assert_eq!(answer.error(400), "MANIFEST_INVALID", "{manifest}");
    }
}

#[test]
fn large_manifests_are_taken_up_to_the_limit() {
    let f = fixture();
    let mut manifest = image(&f.api, "a", "layer");
    manifest["annotations"] = json!({ "large": "A".repeat(3_900_000) });
    f.api.push_manifest("a", "large", &manifest);
    manifest["annotations"] = json!({ "large": "A".repeat(4 << 20) });
    let answer = f.api.send("PUT", "/v2/a/manifests/x", &[], manifest.to_string().as_bytes());
    assert_eq!(answer.error(413), "MANIFEST_INVALID");
}

#[test]
fn tags_are_listed_sorted_and_in_pages() {
    let f = fixture();
    let manifest = image(&f.api, "a", "layer");
    for tag in ["v3", "v1", "latest", "v2"] {
        f.api.push_manifest("a", tag, &manifest);
    }
    let list = |query: &str| f.api.get(&format!("/v2/a/tags/list{query}"));
    assert_eq!(list("").json(), json!({ "name": "a", "tags": ["latest", "v1", "v2", "v3"] }));
    let page = list("?n=2");
    assert_eq!(page.json()["tags"], json!(["latest", "v1"]));
    assert_eq!(page.header("link"), Some("</v2/a/tags/list?n=2&last=v1>; rel=\"next\""));
    let page = list("?n=2&last=v1");
    assert_eq!((page.json()["tags"].clone(), page.header("link")), (json!(["v2", "v3"]), None));
    assert_eq!(list("?last=v1").json()["tags"], json!(["v2", "v3"]));
    assert_eq!(list("?n=0").json()["tags"], json!([]));
}

#[test]
fn repositories_are_listed_sorted_and_in_pages() {
    let f = fixture();
    assert_eq!(f.api.get("/v2/_catalog").json(), json!({ "repositories": [] }));
    for repository in ["b", "a/b", "a", "c-d/e"] {
        let manifest = image(&f.api, repository, "layer");
        f.api.push_manifest(repository, "x", &manifest);
    }
    f.api.push_blob("blobs-only", b"x");
    let list = |query: &str| f.api.get(&format!("/v2/_catalog{query}"));
    assert_eq!(list("").json()["repositories"], json!(["a", "a/b", "b", "c-d/e"]));
    let page = list("?n=1&last=a");
    assert_eq!(page.json()["repositories"], json!(["a/b"]));
    assert_eq!(page.header("link"), Some("</v2/_catalog?n=1&last=a/b>; rel=\"next\""));
}

#[test]
fn referrers_are_listed_by_subject_and_type() {
    let f = fixture();
    let subject = image(&f.api, "a", "layer");
    let digest = sha256(subject.to_string().as_bytes());
    let list = |query: &str| f.api.get(&format!("/v2/a/referrers/{digest}{query}"));
    let empty = list("");
    assert_eq!(empty.expect(200).header("content-type"), Some(INDEX));
    assert_eq!(empty.json(), json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }));
    let mut digests = Vec::new();
    for kind in ["application/vnd.example.one", "application/vnd.example.two"] {
        let manifest = artifact(kind, &subject).to_string();
        let path = format!("/v2/a/manifests/{}", sha256(manifest.as_bytes()));
        let answer = f.api.send("PUT", &path, &[("Content-Type", IMAGE)], manifest.as_bytes());
        assert_eq!(answer.expect(201).header("oci-subject"), Some(digest.as_str()));
        digests.push((sha256(manifest.as_bytes()), manifest.len()));
    }
    assert_eq!(list("").json()["manifests"].as_array().unwrap().len(), 2, "before the subject");
    f.api.push_manifest("a", "image", &subject);
    let filtered = list("?artifactType=application/vnd.example.two");
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    let (second, size) = &digests[1];
    assert_eq!(
        filtered.json()["manifests"],
        json!([{
            "mediaType": IMAGE, "digest": second, "size": size,
            "artifactType": "application/vnd.example.two",
            "annotations": { "key": "application/vnd.example.two" },
        }])
    );
    f.api.send("DELETE", &format!("/v2/a/manifests/{second}"), &[], b"").expect(202);
    assert_eq!(list("").json()["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn a_referrer_without_a_type_has_that_of_its_config_and_an_index_none() {
    let f = fixture();
    let subject = image(&f.api, "a", "layer");
    let mut plain = subject.clone();
    plain["subject"] = descriptor(IMAGE, subject.to_string().as_bytes());
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "subject": plain["subject"],
    });
    f.api.push_manifest("a", "plain", &plain);
    f.api.push_manifest("a", "index", &index);
    let digest = sha256(subject.to_string().as_bytes());
    let listed = f.api.get(&format!("/v2/a/referrers/{digest}")).json();
    let mut types: Vec<_> = listed["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["mediaType"].clone(), entry.get("artifactType").cloned()))
        .collect();
    types.sort_by_key(|(media_type, _)| media_type.to_string());
    assert_eq!(types, [(json!(INDEX), None), (json!(IMAGE), Some(json!(CONFIG)))]);
}

#[test]
fn tags_manifests_and_blobs_are_deleted_at_once() {
    let f = fixture();
    let manifest = image(&f.api, "a", "layer");
    let digest = f.api.push_manifest("a", "one", &manifest);
    f.api.push_manifest("a", "two", &manifest);
    let delete = |path: &str| f.api.send("DELETE", path, &[], b"");
    delete("/v2/a/manifests/one").expect(202);
    f.api.head("/v2/a/manifests/one").expect(404);
    f.api.head("/v2/a/manifests/two").expect(200);
    assert_eq!(delete("/v2/a/manifests/one").error(404), "MANIFEST_UNKNOWN");
    let by_digest = format!("/v2/a/manifests/{digest}");
    delete(&by_digest).expect(202);
    f.api.head(&by_digest).expect(404);
    f.api.head("/v2/a/manifests/two").expect(404);
    delete(&by_digest).expect(404);
    let blob = format!("/v2/a/blobs/{}", sha256(b"layer"));
    delete(&blob).expect(202);
    f.api.head(&blob).expect(404);
    assert_eq!(delete(&blob).error(404), "BLOB_UNKNOWN");
    assert_eq!(f.api.get("/v2/_catalog").json()["repositories"], json!([]));
}

#[test]
fn a_blob_deleted_in_one_repository_stays_in_the_others() {
    let f = fixture();
    let digest = f.api.push_blob("a", b"shared");
    f.api.push_blob("b", b"shared");
    f.api.send("DELETE", &format!("/v2/a/blobs/{digest}"), &[], b"").expect(202);
    assert_eq!(f.api.get(&format!("/v2/b/blobs/{digest}")).expect(200).body, b"shared");
}

#[test]
fn a_read_only_registry_refuses_every_change() {
    let f = fixture_with(&["--push", "none"]);
    let manifest = "/v2/a/manifests/x";
    let blob = format!("/v2/a/blobs/{}", sha256(b""));
    for (method, path) in [
        ("POST", "/v2/a/blobs/uploads/"),
        ("PUT", manifest),
        ("DELETE", manifest),
        ("DELETE", blob.as_str()),
    ] {
        assert_eq!(f.api.send(method, path, &[], b"").error(405), "UNSUPPORTED", "{method} {path}");
    }
    f.api.get("/v2/").expect(200);
}

#[test]
fn what_was_done_is_told_in_numbers() {
    let f = fixture();
    let digest = f.api.push_blob("a", &bytes(1000));
    f.api.get(&format!("/v2/a/blobs/{digest}")).expect(200);
    f.api.get("/v2/a/manifests/x").expect(404);
    f.api.begin("a");
    let answer = f.api.get("/metrics");
    let text = String::from_utf8(answer.expect(200).body.clone()).unwrap();
    for line in [
        "undermount_registry_requests_total{method=\"GET\",status=\"200\"} 1",
        "undermount_registry_requests_total{method=\"GET\",status=\"404\"} 1",
        "undermount_registry_requests_total{method=\"PUT\",status=\"201\"} 1",
        "undermount_registry_received_bytes_total 1000",
        "undermount_registry_uploads 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

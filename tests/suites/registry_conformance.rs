//! `undermount registry` against what the conformance suite of the distribution-spec 1.1 checks,
//! in the suite's order: blobs in every way of pushing them, then each shape of content pushed,
//! listed, asked for, pulled, referred to and deleted, then errors. What the suite leaves open
//! is in `registry_api.rs`.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use undermount_tests::conformance::{Content, INDEX, MANIFEST, Manifest, contents};
use undermount_tests::distribution::{Answer, Api, PUSHES, range, sha256, sha512};
use undermount_tests::registry::Registry;

const REPOSITORY: &str = "conformance/repo1";
const OTHER: &str = "conformance/repo2";
/// The error codes of the distribution-spec.
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];

struct Fixture {
    _root: tempfile::TempDir,
    _registry: Registry,
    api: Api,
}

fn fixture() -> Fixture {
    fixture_with(&[])
}

fn fixture_with(flags: &[&str]) -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let registry = Registry::undermount_with(root.path(), flags);
    let api = Api(registry.address().to_owned());
    Fixture { _root: root, _registry: registry, api }
}

fn blob_path(digest: &str) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    undermount_tests::archive::noise(seed, length)
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.header(name).unwrap_or_else(|| panic!("no {name}: {:?}", answer.headers))
}

/// HEAD and GET of what must be there.
fn assert_served(api: &Api, path: &str, digest: &str, media_type: Option<&str>, bytes: &[u8]) {
    let head = api.head(path);
    assert!(head.expect(200).body.is_empty(), "{path}");
    let get = api.get(path);
    assert!(get.expect(200).body == bytes, "{path}");
    for answer in [&head, &get] {
        assert_eq!(header(answer, "content-length"), bytes.len().to_string(), "{path}");
        assert_eq!(header(answer, "docker-content-digest"), digest, "{path}");
        if let Some(media_type) = media_type {
            assert_eq!(header(answer, "content-type"), media_type, "{path}");
        }
    }
}

/// DELETE of what must be there, which is gone at once.
fn assert_deletable(api: &Api, path: &str) {
    api.send("DELETE", path, &[], b"").expect(202);
    api.head(path).expect(404);
}

/// A blob was taken: its answer names it, and it is served from there.
fn assert_taken(api: &Api, answer: &Answer, digest: &str, blob: &[u8]) {
    assert_eq!(header(answer.expect(201), "docker-content-digest"), digest);
    assert_served(api, answer.location(), digest, None, blob);
    assert_served(api, &blob_path(digest), digest, None, blob);
    assert_deletable(api, &blob_path(digest));
}

#[test]
fn the_registry_answers_a_ping() {
    fixture().api.get("/v2/").expect(200);
}

#[test]
fn an_empty_repository_has_no_tags_and_no_referrers() {
    let f = fixture();
    let tags = f.api.get(&format!("/v2/{REPOSITORY}/tags/list"));
    assert_eq!(tags.error(404), "NAME_UNKNOWN");
    let digest = sha256(b"no such manifest");
    let referrers = f.api.get(&format!("/v2/{REPOSITORY}/referrers/{digest}"));
    assert_eq!(header(referrers.expect(200), "content-type"), INDEX);
    let empty = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] });
    assert_eq!(referrers.json(), empty);
}

#[test]
fn blobs_are_pushed_in_every_way() {
    let f = fixture();
    for hash in [sha256, sha512] {
        for (number, (_, push)) in PUSHES.into_iter().enumerate() {
            // Well-known content besides: nothing at all, and the empty JSON object.
            for blob in [noise(number as u64, 3067), Vec::new(), b"{}".to_vec()] {
                let digest = hash(&blob);
                f.api.head(&blob_path(&digest)).expect(404);
                assert_eq!(f.api.get(&blob_path(&digest)).error(404), "BLOB_UNKNOWN");
                let answer = push(&f.api, REPOSITORY, &digest, &blob);
                assert_taken(&f.api, &answer, &digest, &blob);
            }
        }
    }
}

#[test]
fn a_blob_that_hashes_to_something_else_is_refused_in_every_way() {
    let f = fixture();
    for hash in [sha256, sha512] {
        for (_, push) in PUSHES {
            let digest = hash(b"something else");
            let answer = push(&f.api, REPOSITORY, &digest, &noise(7, 3067));
            assert_eq!(answer.error(400), "DIGEST_INVALID");
            f.api.head(&blob_path(&digest)).expect(404);
        }
    }
}

#[test]
fn chunks_out_of_order_are_refused_before_each_right_one() {
    let f = fixture();
    for (seed, hash) in [(1, sha256 as fn(&[u8]) -> String), (2, sha512)] {
        for last_by_put in [false, true] {
            let blob = noise(seed, 3067);
            let digest = hash(&blob);
            let chunks = [0..1023, 1023..2046, 2046..3067];
            let mut location = f.api.begin(REPOSITORY);
            let mut answer = None;
            for (number, chunk) in chunks.iter().enumerate() {
                let wrong = chunks.get(number + 1).unwrap_or(&chunks[0]);
                let send = |location: &str, chunk: &std::ops::Range<usize>| {
                    let last = last_by_put && chunk.end == blob.len();
                    let query = format!("{location}?digest={digest}");
                    let (method, path) = if last { ("PUT", &*query) } else { ("PATCH", location) };
                    let content_range = range(chunk.start, chunk.end);
                    let headers = [
                        ("Content-Range", content_range.as_str()),
                        ("Content-Type", "application/octet-stream"),
                    ];
                    f.api.send(method, path, &headers, &blob[chunk.clone()])
                };
                assert_eq!(send(&location, wrong).error(416), "BLOB_UPLOAD_INVALID");
                let status = f.api.get(&location);
                let have = header(status.expect(204), "range").strip_prefix("0-").unwrap();
                assert_eq!(have.parse::<usize>().unwrap(), chunk.start.saturating_sub(1));
                let taken = send(status.location(), chunk);
                location = taken.location().to_owned();
                answer = Some(taken);
            }
            if !last_by_put {
                answer = Some(f.api.send("PUT", &format!("{location}?digest={digest}"), &[], b""));
            }
            assert_taken(&f.api, &answer.unwrap(), &digest, &blob);
        }
    }
}

#[test]
fn a_cancelled_upload_is_gone() {
    let f = fixture();
    let location = f.api.begin(REPOSITORY);
    f.api.send("DELETE", &location, &[], b"").expect(204);
    assert_eq!(f.api.get(&location).error(404), "BLOB_UPLOAD_UNKNOWN");
}

#[test]
fn blobs_are_mounted_where_they_are_and_uploaded_where_they_are_not() {
    let f = fixture();
    for hash in [sha256, sha512] {
        for (seed, from) in [(1, format!("&from={OTHER}")), (2, String::new())] {
            let blob = noise(seed, 512);
            let digest = hash(&blob);
            let path = format!("/v2/{REPOSITORY}/blobs/uploads/?mount={digest}{from}");
            let missing = f.api.send("POST", &path, &[], b"");
            let upload = format!("{}?digest={digest}", missing.expect(202).location());
            assert_taken(&f.api, &f.api.send("PUT", &upload, &[], &blob), &digest, &blob);
            PUSHES[0].1(&f.api, OTHER, &digest, &blob).expect(201);
            assert_taken(&f.api, &f.api.send("POST", &path, &[], b""), &digest, &blob);
            assert_deletable(&f.api, &format!("/v2/{OTHER}/blobs/{digest}"));
        }
    }
}

#[test]
fn parts_of_blobs_are_served() {
    let f = fixture();
    let blob = noise(3, 2048);
    for hash in [sha256, sha512] {
        let digest = hash(&blob);
        PUSHES[1].1(&f.api, REPOSITORY, &digest, &blob).expect(201);
        let get = |wanted| f.api.send("GET", &blob_path(&digest), &[("Range", wanted)], b"");
        for (wanted, part) in [
            ("bytes=500-1499", 500..1500),
            ("bytes=500-", 500..2048),
            ("bytes=-500", 1548..2048),
            ("bytes=2000-5000", 2000..2048),
        ] {
            let answer = get(wanted);
            assert!(answer.expect(206).body == blob[part.clone()], "{wanted}");
            assert_eq!(header(&answer, "content-length"), part.len().to_string());
            let told = format!("bytes {}/2048", range(part.start, part.end));
            assert_eq!(header(&answer, "content-range"), told);
        }
        for wanted in ["bytes=500-0", "bytes=5000-10000"] {
            get(wanted).expect(416);
        }
    }
}

#[test]
fn content_of_every_shape_is_pushed_listed_pulled_and_deleted() {
    let f = fixture();
    for content in contents() {
        println!("{}", content.name);
        push(&f.api, &content);
        assert_tags_are_listed(&f.api, &content);
        for (digest, blob) in &content.blobs {
            assert_served(&f.api, &blob_path(digest), digest, None, blob);
        }
        for manifest in &content.manifests {
            assert_manifest_is_served(&f.api, &manifest.digest, manifest);
        }
        for (tag, place) in &content.tags {
            assert_manifest_is_served(&f.api, tag, &content.manifests[*place]);
        }
        assert_referrers_are_listed(&f.api, &content);
        delete(&f.api, &content);
    }
    assert_eq!(tag_list(&f.api, ""), [""; 0], "all manifests are gone, the repository is not");
}

fn push(api: &Api, content: &Content) {
    for (number, (digest, blob)) in content.blobs.iter().enumerate() {
        let (_, way) = PUSHES[number % PUSHES.len()];
        way(api, REPOSITORY, digest, blob).expect(201);
    }
    for manifest in &content.manifests {
        put_manifest(api, &manifest.digest, manifest);
    }
    for (tag, place) in &content.tags {
        put_manifest(api, tag, &content.manifests[*place]);
    }
}

fn put_manifest(api: &Api, reference: &str, manifest: &Manifest) {
    let headers = [("Content-Type", manifest.media_type)];
    let answer = api.send("PUT", &manifest_path(reference), &headers, &manifest.bytes);
    assert_eq!(header(answer.expect(201), "docker-content-digest"), manifest.digest);
    if let Some((subject, _)) = &manifest.referrer {
        assert_eq!(header(&answer, "oci-subject"), subject);
    }
    let media_type = Some(manifest.media_type);
    assert_served(api, answer.location(), &manifest.digest, media_type, &manifest.bytes);
}

fn assert_manifest_is_served(api: &Api, reference: &str, manifest: &Manifest) {
    let (media_type, path) = (Some(manifest.media_type), manifest_path(reference));
    assert_served(api, &path, &manifest.digest, media_type, &manifest.bytes);
}

fn tag_list(api: &Api, query: &str) -> Vec<String> {
    let answer = api.get(&format!("/v2/{REPOSITORY}/tags/list{query}"));
    serde_json::from_value(answer.expect(200).json()["tags"].clone()).unwrap()
}

fn assert_tags_are_listed(api: &Api, content: &Content) {
    let tags = tag_list(api, "");
    assert!(content.tags.iter().all(|(tag, _)| tags.contains(tag)), "{tags:?}");
    assert!(tags.is_sorted());
    if let Some((last, rest)) = tags.split_first() {
        assert_eq!(tag_list(api, &format!("?last={last}")), rest);
        assert_eq!(tag_list(api, "?n=1"), [last.as_str()]);
    }
}

fn assert_referrers_are_listed(api: &Api, content: &Content) {
    let goals: Vec<&(String, Value)> =
        content.manifests.iter().filter_map(|manifest| manifest.referrer.as_ref()).collect();
    for (subject, goal) in &goals {
        let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
        let all = api.get(&path);
        assert_eq!(header(all.expect(200), "content-type"), INDEX);
        let listed = all.json()["manifests"].as_array().unwrap().clone();
        assert!(listed.contains(goal), "{goal}");
        let pushed = goals.iter().filter(|(other, _)| other == subject).count();
        assert_eq!(listed.len(), pushed, "nobody can run the image: it has no index of ours");
        let Some(kind) = goal["artifactType"].as_str() else { continue };
        let filtered = api.get(&format!("{path}?artifactType={kind}"));
        assert_eq!(header(filtered.expect(200), "oci-filters-applied"), "artifactType");
        let listed = filtered.json()["manifests"].as_array().unwrap().clone();
        assert!(listed.contains(goal) && listed.iter().all(|entry| entry["artifactType"] == kind));
    }
}

fn delete(api: &Api, content: &Content) {
    for (tag, _) in &content.tags {
        assert_deletable(api, &manifest_path(tag));
    }
    for manifest in content.manifests.iter().rev() {
        assert_deletable(api, &manifest_path(&manifest.digest));
    }
    for (digest, _) in &content.blobs {
        assert_deletable(api, &blob_path(digest));
    }
}

#[test]
fn tags_are_pushed_as_parameters_under_either_digest() {
    let f = fixture();
    for content in contents().iter().filter(|content| ["index", "sha512"].contains(&content.name)) {
        push(&f.api, content);
        for (number, manifest) in content.manifests.iter().enumerate() {
            let tags = [format!("param-{number}"), format!("other-{number}")];
            let query = format!("{}?tag={}&tag={}", manifest.digest, tags[0], tags[1]);
            let headers = [("Content-Type", manifest.media_type)];
            let answer = f.api.send("PUT", &manifest_path(&query), &headers, &manifest.bytes);
            let told = answer.expect(201).headers.iter().filter(|(name, _)| name == "oci-tag");
            assert_eq!(told.map(|(_, tag)| tag).collect::<Vec<_>>(), [&tags[0], &tags[1]]);
            for tag in tags {
                assert_manifest_is_served(&f.api, &tag, manifest);
            }
        }
    }
}

#[test]
fn manifests_that_are_not_there_are_unknown() {
    let f = fixture();
    // Where a tag cannot be, there is none.
    let impossible = ".INVALID_MANIFEST_NAME".to_owned();
    for reference in [sha256(b"missing"), "missing".to_owned(), impossible.clone()] {
        assert_eq!(f.api.get(&manifest_path(&reference)).error(404), "MANIFEST_UNKNOWN");
        f.api.head(&manifest_path(&reference)).expect(404);
        let answer = f.api.send("DELETE", &manifest_path(&reference), &[], b"");
        assert_eq!(answer.error(404), "MANIFEST_UNKNOWN");
    }
    let put =
        f.api.send("PUT", &manifest_path(&impossible), &[], &contents()[0].manifests[0].bytes);
    assert_eq!(put.error(400), "MANIFEST_INVALID");
}

#[test]
fn manifests_by_a_wrong_digest_are_refused_with_a_code_of_the_specification() {
    let f = fixture();
    let content = &contents()[0];
    push(&f.api, content);
    let mut bytes = content.manifests[0].bytes.clone();
    bytes.extend_from_slice(b"  ");
    for reference in ["sha256:totallywrong", "sha256:baddigeststring", &content.manifests[0].digest]
    {
        let headers = [("Content-Type", MANIFEST)];
        let answer = f.api.send("PUT", &manifest_path(reference), &headers, &bytes);
        assert!(CODES.contains(&answer.error(400).as_str()), "{reference}");
    }
    assert_eq!(f.api.get(&manifest_path("sha256:baddigeststring")).error(400), "DIGEST_INVALID");
}

#[test]
fn manifests_of_a_type_that_nobody_knows_are_refused() {
    let f = fixture();
    let answer = f.api.send(
        "PUT",
        &manifest_path("x"),
        &[("Content-Type", "application/vnd.example.unknown+json")],
        json!({ "schemaVersion": 2 }).to_string().as_bytes(),
    );
    assert_eq!(answer.error(400), "MANIFEST_INVALID");
}

/// A manifest some of whose parts were never pushed: an image without its layer, or an index
/// without one of its images.
fn sparse(api: &Api) -> [Value; 2] {
    let descriptor = |bytes: &[u8], kind: &str| json!({ "mediaType": kind, "digest": sha256(bytes), "size": bytes.len() });
    PUSHES[0].1(api, REPOSITORY, &sha256(b"{}"), b"{}").expect(201);
    let config = descriptor(b"{}", "application/vnd.oci.image.config.v1+json");
    let layer = descriptor(b"never pushed", "application/vnd.oci.image.layer.v1.tar+gzip");
    let absent = descriptor(b"never pushed either", MANIFEST);
    [
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }),
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [absent] }),
    ]
}

#[test]
fn sparse_manifests_are_taken_only_if_the_registry_is_told_to() {
    for (flags, taken) in [(&[][..], false), (&["--sparse"][..], true)] {
        let f = fixture_with(flags);
        for manifest in sparse(&f.api) {
            let headers = [("Content-Type", manifest["mediaType"].as_str().unwrap())];
            let bytes = manifest.to_string();
            let answer = f.api.send("PUT", &manifest_path("sparse"), &headers, bytes.as_bytes());
            if taken {
                let digest = sha256(bytes.as_bytes());
                answer.expect(201);
                assert_served(&f.api, &manifest_path("sparse"), &digest, None, bytes.as_bytes());
            } else {
                assert_eq!(answer.error(400), "MANIFEST_BLOB_UNKNOWN");
            }
        }
    }
}

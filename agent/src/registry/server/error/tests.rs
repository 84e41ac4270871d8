//! What clients are told, and in which words.

use super::super::digest::Algorithm;
use super::*;

#[test]
fn each_missing_blob_has_an_entry_of_its_own() {
    let missing = ["a", "b"].map(|text| ContentDigest::of(Algorithm::Sha256, text.as_bytes()));
    let error = ApiError::ManifestBlobsUnknown {
        repository: Repository::parse("a").unwrap(),
        missing: missing.to_vec(),
    };
    let (status, code) = error.classify();
    let entries = error.entries(code);
    assert_eq!((status.as_u16(), code), (400, "MANIFEST_BLOB_UNKNOWN"));
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["detail"]["digest"], missing[1].to_string());
}

#[test]
fn an_empty_upload_is_continued_at_its_first_byte() {
    let error = ApiError::ChunkOutOfOrder {
        location: "/v2/a/blobs/uploads/x".into(),
        len: 0,
        chunk: "5-9".into(),
    };
    assert!(error.headers().contains(&(header::RANGE, "0-0".into())));
}

/// Refusals of every kind, each with its status, its code and what it says.
fn refusals() -> Vec<(ApiError, u16, &'static str, String)> {
    let [digest, other] =
        ["a", "b"].map(|text| ContentDigest::of(Algorithm::Sha256, text.as_bytes()));
    let repository = || Repository::parse("a/b").unwrap();
    let chunk = || ApiError::ChunkOutOfOrder { location: "/x".into(), len: 3, chunk: "5-9".into() };
    let session = "0".repeat(32);
    let wrong = || ApiError::ManifestDigest { expected: digest.clone(), actual: other.clone() };
    let size = || ApiError::DescriptorSize { digest: digest.clone(), claimed: 4, actual: 5 };
    let broken = ReceiveError::Broken("reset".into());
    let text = str::to_owned;
    vec![
        (
            ApiError::Parameter { name: "n", value: "many".into() },
            400,
            "UNSUPPORTED",
            text("the parameter `n` is malformed: `many`"),
        ),
        (
            ApiError::RepositoryUnknown(repository()),
            404,
            "NAME_UNKNOWN",
            text("the registry has no repository `a/b`"),
        ),
        (
            ApiError::ManifestUnknown { repository: repository(), reference: "t".into() },
            404,
            "MANIFEST_UNKNOWN",
            text("repository `a/b` has no manifest `t`"),
        ),
        (
            ApiError::BlobUnknown { repository: repository(), digest: digest.clone() },
            404,
            "BLOB_UNKNOWN",
            format!("repository `a/b` has no blob {digest}"),
        ),
        (
            ApiError::UploadUnknown(SessionId::parse(&session).unwrap()),
            404,
            "BLOB_UPLOAD_UNKNOWN",
            format!("there is no upload `{session}`: it ended, was cancelled or timed out"),
        ),
        (
            ApiError::Range(7),
            416,
            "UNSUPPORTED",
            text("the blob has 7 bytes and none in this range"),
        ),
        (
            chunk(),
            416,
            "BLOB_UPLOAD_INVALID",
            text("the upload stands at byte 3, the chunk is `5-9`"),
        ),
        (
            ApiError::ChunkSize { expected: 5, actual: 4 },
            400,
            "SIZE_INVALID",
            text("the chunk should have 5 bytes and has 4"),
        ),
        (
            BeginError::TooMany.into(),
            429,
            "TOOMANYREQUESTS",
            text("10000 uploads are in progress already"),
        ),
        (broken.into(), 400, "BLOB_UPLOAD_INVALID", text("the body ended before its time")),
        (
            ReceiveError::Stalled.into(),
            408,
            "BLOB_UPLOAD_INVALID",
            text("nothing was sent for 60 s"),
        ),
        (
            ReceiveError::Late(60).into(),
            408,
            "MANIFEST_INVALID",
            text("the body took longer than 60 s"),
        ),
        (
            wrong(),
            400,
            "DIGEST_INVALID",
            format!("the manifest hashes to {other}, not to {digest}"),
        ),
        (
            ApiError::ManifestSize(9),
            413,
            "MANIFEST_INVALID",
            text("the manifest is larger than 9 bytes"),
        ),
        (size(), 400, "SIZE_INVALID", format!("the manifest gives {digest} 4 bytes, it has 5")),
        (
            ApiError::Unauthorized { challenge: "Bearer".into() },
            401,
            "UNAUTHORIZED",
            text("log in for this"),
        ),
        (
            ApiError::TooManyReads(8),
            429,
            "TOOMANYREQUESTS",
            text("this client reads 8 blobs at a time already: ask again later"),
        ),
        (
            ApiError::TooManyProfiles,
            429,
            "TOOMANYREQUESTS",
            text("the registry reads too many profiles of starts already: ask again later"),
        ),
        (
            GarbageError::Busy.into(),
            429,
            "TOOMANYREQUESTS",
            text("garbage is being collected already"),
        ),
        (
            ApiError::NoProfiles,
            404,
            "UNSUPPORTED",
            text("this registry takes no profiles of starts"),
        ),
        (
            ApiError::PushDenied,
            403,
            "DENIED",
            text(
                "this registry takes pushes from its own host only (its --push and --htpasswd say who else)",
            ),
        ),
        (ApiError::ReadOnly, 405, "UNSUPPORTED", text("this registry is read-only")),
        (ApiError::Method(Method::POST), 405, "UNSUPPORTED", text("POST is not supported here")),
    ]
}

#[test]
fn each_refusal_has_its_status_its_code_and_its_words() {
    for (error, status, code, words) in refusals() {
        let (found, name) = error.classify();
        assert_eq!((found.as_u16(), name), (status, code), "{words}");
        assert_eq!(error.entries(code)[0]["message"], words);
    }
}

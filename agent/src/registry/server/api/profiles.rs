//! Profiles of starts, told by those who pull.
//!
//! Whoever may pull may tell. What he tells decides which files the image's start-up pack holds:
//! one who lies makes nodes fetch files that they do not need, bounded by the size of packs, and
//! nothing else. Size and number of profiles are bounded, too.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::response::IntoResponse as _;
use http::StatusCode;
use serde_json::json;

use super::super::digest::ContentDigest;
use super::super::error::ApiError;
use super::super::indexing::Image;
use super::super::name::Repository;
use super::super::packing::Packing;
use super::{Answer, Registry};
use crate::profile::{FILE_MAX, StartRecord};

/// How long a profile may take to come in, while others wait.
const BODY: Duration = Duration::from_secs(10);

impl Registry {
    /// GET: how many starts of an image are known.
    pub(super) async fn count_starts(
        &self,
        repository: Repository,
        image: ContentDigest,
    ) -> Answer {
        let image = Image { repository, digest: image };
        let starts = self.packing(&image).await?.starts(&image).await?;
        Ok(Json(json!({ "starts": starts })).into_response())
    }

    /// POST of a profile.
    pub(super) async fn take_profile(
        &self,
        repository: Repository,
        image: ContentDigest,
        body: Body,
    ) -> Answer {
        let image = Image { repository, digest: image };
        let packing = Arc::clone(self.packing(&image).await?);
        let _turn = packing.turn().await?;
        let too_large = |_| ApiError::Profile(format!("a profile has at most {FILE_MAX} bytes"));
        let json = axum::body::to_bytes(body, FILE_MAX as usize);
        let late = |_| ApiError::Profile(format!("it took longer than {} s", BODY.as_secs()));
        let json = tokio::time::timeout(BODY, json).await.map_err(late)?.map_err(too_large)?;
        let record = StartRecord::from_json(&json, Path::new("profile"))
            .map_err(|error| ApiError::Profile(error.to_string()))?;
        if image.digest.sha256() != Some(record.manifest) {
            let words = format!("the profile is of {}, not of {}", record.manifest, image.digest);
            return Err(ApiError::Profile(words));
        }
        let taking = Arc::clone(&packing).take(image, record);
        self.to_its_end(taking).await?;
        Ok(StatusCode::ACCEPTED.into_response())
    }

    /// What takes profiles of `image`, if that is here.
    async fn packing(&self, image: &Image) -> Result<&Arc<Packing>, ApiError> {
        let writer = self.writer()?;
        let (wanted, reference) = (image.clone(), image.digest.to_string());
        let size = self
            .on_storage(move |storage| storage.manifest_size(&wanted.repository, &wanted.digest))
            .await?;
        if size.is_none() {
            let repository = image.repository.clone();
            return Err(ApiError::ManifestUnknown { repository, reference });
        }
        writer.packing.as_ref().ok_or(ApiError::NoProfiles)
    }
}

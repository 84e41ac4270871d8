//! What an agent finds of the one before it, and leaves to the next.

use std::path::PathBuf;
use std::sync::Arc;

use undermount::agent::process::Continuity;
use undermount::config::Settings;
use undermount_fs::session::keeper::{DescriptorStore, Estate};

use super::service;
use crate::cli::exit::{CliError, CliResult};

/// What the agent before this one has left with the service manager.
pub struct Legacy {
    store: Arc<dyn DescriptorStore>,
    estate: Option<Estate>,
}

impl Legacy {
    /// What it has left with the unit `name`; `None` where no service manager keeps anything.
    /// To be called before anything is opened.
    pub fn of(name: String) -> Option<Self> {
        let descriptors = service::descriptors();
        let store: Arc<dyn DescriptorStore> = Arc::new(service::unit(name)?);
        let names: Vec<String> = descriptors.keys().cloned().collect();
        if names.is_empty() {
            return Some(Self { store, estate: None });
        }
        let estate = Estate::open(descriptors);
        if let Err(error) = &estate {
            tracing::error!(%error, "the mounts are made anew");
            for name in names {
                // A manager that is gone keeps nothing.
                let _ = store.close(&name);
            }
        }
        Some(Self { store, estate: estate.ok() })
    }

    /// The settings that the mounts were made with, where those of today cannot be used because
    /// of `error`: a mistake in the configuration ends no container.
    ///
    /// # Errors
    /// `error`, where nothing was mounted, or it is not known how; nothing is then.
    pub fn settings_in_place_of(&mut self, error: CliError) -> CliResult<Settings> {
        let Some(settings) = self.estate.as_ref().and_then(noted) else {
            if let Some(estate) = self.estate.take() {
                estate.renounce(&*self.store);
            }
            return Err(error);
        };
        tracing::error!(%error, "the configuration is not used; the one before holds on");
        Ok(settings)
    }

    /// How the agent goes on with `settings`: where it is about another cache or another layer
    /// store now, what the one before has mounted is taken away.
    pub fn continuity(self, settings: &Settings) -> Continuity {
        let Self { store, estate } = self;
        let fits =
            estate.as_ref().and_then(noted).is_some_and(|before| place(&before) == place(settings));
        let estate = match estate {
            Some(estate) if !fits => {
                tracing::error!("cache or layer store have moved: the mounts are made anew");
                estate.renounce(&*store);
                None
            }
            other => other,
        };
        let note = serde_json::to_string(settings).expect("settings are plain data");
        Continuity { store, estate, note }
    }
}

fn noted(estate: &Estate) -> Option<Settings> {
    serde_json::from_str(estate.note()).ok()
}

/// What mounts cannot be told anew.
fn place(settings: &Settings) -> (PathBuf, PathBuf) {
    let cache: &std::path::Path = &settings.cache.directory;
    // One that does not exist yet has no mounts either.
    let cache = cache.canonicalize().unwrap_or_else(|_| cache.to_owned());
    (cache, settings.store.mount.to_path_buf())
}

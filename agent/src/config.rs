//! What the operator wants of the agent: `/etc/undermount/agent.toml`, laid under the flags.
//!
//! Two steps. [`Settings`] is the file as it is typed: each key has a type that cannot hold a
//! wrong value ([`value`]), so that a mistake is refused where it stands, by file and line, with
//! what is allowed there. Then [`Settings::owner`] and its like make the configuration of one
//! subsystem each, which knows nothing of files. `packaging/etc/agent.toml` documents every key.

mod file;
mod peers;
pub mod value;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use undermount_fs::fill::{OnOutage, Patience};
use undermount_fs::object::Verify;
use undermount_fs::session::DataMode;

use crate::agent::peers::PeersConfig;
use crate::agent::process::OwnerConfig;
use crate::agent::starts::Recorded;
use crate::host;
use crate::mirror::MirrorConfig;
use crate::registry::client::{ClientConfig, Credentials, PlainHttp};
use value::{
    ByteCount, Directory, Listen, Loopback, RegistryName, Seconds, SelinuxContext, StorePath,
};

pub use file::ConfigError;
pub use peers::PeerSettings;

/// Where the file is, unless somebody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/undermount/agent.toml";

/// The file as it is typed, with the defaults for what it leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where fetched bytes are kept.
    pub cache: CacheSettings,
    /// What a read may cost.
    pub reads: ReadSettings,
    /// What the mounts are like.
    pub mounts: MountSettings,
    /// How mounted images become local.
    pub completion: CompletionSettings,
    /// What becomes of the starts of images.
    pub profiles: ProfileSettings,
    /// How registries are reached.
    pub registries: RegistrySettings,
    /// The layer store that podman looks into.
    pub store: StoreSettings,
    /// The pull-through mirror for clients that pull whole images.
    pub mirror: MirrorSettings,
    /// What is told to Prometheus.
    pub metrics: MetricsSettings,
    /// What this node shares with the others.
    pub peers: PeerSettings,
}

/// `[cache]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// The directory.
    pub directory: Directory,
    /// Bytes of file contents to keep; `None` for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<ByteCount>,
    /// Bytes of the file system that stay free; `None` for a twentieth of it, at most 1 GiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserve: Option<ByteCount>,
    /// Whether files of mounted and complete images may be dropped and fetched again.
    pub evict_complete: bool,
    /// When file contents are hashed.
    pub verify: Verify,
}

/// `[reads]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadSettings {
    /// How long a read may wait for bytes that must be fetched.
    pub timeout: Seconds<1, 3600>,
    /// What becomes of it when they cannot be fetched.
    pub on_outage: OnOutage,
    /// How the kernel gets the bytes of files.
    pub data_mode: DataMode,
}

impl Default for ReadSettings {
    fn default() -> Self {
        let timeout = Seconds::new(60).expect("a minute is in range");
        Self { timeout, on_outage: OnOutage::default(), data_mode: DataMode::default() }
    }
}

/// `[mounts]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MountSettings {
    /// The SELinux context of all files in them; `None` for what the policy says of FUSE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_context: Option<SelinuxContext>,
}

/// `[completion]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompletionSettings {
    /// Time within which a mounted image becomes fully local; zero for never.
    pub within: Seconds<0, 604_800>,
}

impl Default for CompletionSettings {
    fn default() -> Self {
        Self { within: Seconds::new(600).expect("ten minutes are in range") }
    }
}

/// `[profiles]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileSettings {
    /// Whether what a start reads is recorded, and who gets it.
    pub starts: Recorded,
}

/// `[registries]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistrySettings {
    /// Registries that are spoken to without TLS.
    pub plain_http: Vec<RegistryName>,
    /// Registries whose certificates are not checked.
    pub unverified_tls: Vec<RegistryName>,
    /// Files with CA certificates (PEM) beside those of the system.
    pub ca_files: Vec<PathBuf>,
    /// The file with credentials; `None` for those that podman and docker keep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_file: Option<PathBuf>,
}

/// `[store]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSettings {
    /// Where the layer store is mounted.
    pub mount: StorePath,
}

/// `[mirror]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorSettings {
    /// Where the mirror listens; `None` for no mirror.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Loopback>,
    /// The registries that it mirrors; others are refused.
    pub registries: Vec<RegistryName>,
    /// Bytes of blobs to keep for it.
    pub quota: ByteCount,
}

impl Default for MirrorSettings {
    fn default() -> Self {
        let quota = ByteCount::new(50 << 30).expect("50 GiB are in range");
        Self { listen: None, registries: Vec::new(), quota }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsSettings {
    /// Where metrics are told; `None` for nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Listen>,
}

impl Settings {
    /// What the file at `path` says.
    ///
    /// # Errors
    /// [`ConfigError`] where it cannot be read, or says something that is not allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = host::file::read_text(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        file::parse(path, &text)
    }

    /// What [`DEFAULT_FILE`] says; the defaults where there is none.
    ///
    /// # Errors
    /// [`ConfigError`] where it is there and cannot be used.
    pub fn load_default() -> Result<Self, ConfigError> {
        let path = Path::new(DEFAULT_FILE);
        if path.exists() { Self::load(path) } else { Ok(Self::default()) }
    }

    /// The settings as a file that says the same.
    pub fn to_toml(&self) -> String {
        toml_edit::ser::to_string_pretty(self).expect("settings are plain tables")
    }

    /// The configuration of a cache's owner. `client` holds what the host's files say about
    /// registries.
    ///
    /// # Errors
    /// [`ConfigError::Certificate`] where a CA file cannot be used.
    pub fn owner(&self, client: ClientConfig) -> Result<OwnerConfig, ConfigError> {
        Ok(OwnerConfig {
            cache: self.cache.directory.to_path_buf(),
            quota: self.cache.quota.map(ByteCount::get),
            reserve: self.cache.reserve.map(ByteCount::get),
            evict_complete: self.cache.evict_complete,
            verify: self.cache.verify,
            patience: Patience {
                timeout: self.reads.timeout.into(),
                on_outage: self.reads.on_outage,
            },
            complete_within: self.completion.within.into(),
            recorded_starts: self.profiles.starts,
            client: self.client(client)?,
            mirror: self.mirror(),
            metrics: self.metrics.listen.map(Listen::get),
            peers: self.peers(),
        })
    }

    fn mirror(&self) -> Option<MirrorConfig> {
        let MirrorSettings { listen, registries, quota } = &self.mirror;
        Some(MirrorConfig {
            listen: listen.as_ref()?.get(),
            registries: registries.iter().map(ToString::to_string).collect(),
            quota: quota.get(),
        })
    }

    fn peers(&self) -> Option<PeersConfig> {
        let plain = self.registries.plain_http.iter().map(ToString::to_string);
        self.peers.peers(&plain.collect::<Vec<_>>())
    }

    /// How registries are spoken to: `base`, with what the file says about them.
    ///
    /// # Errors
    /// [`ConfigError::Certificate`] where a CA file cannot be used.
    pub fn client(&self, base: ClientConfig) -> Result<ClientConfig, ConfigError> {
        let RegistrySettings { plain_http, unverified_tls, ca_files, auth_file } = &self.registries;
        let names = |names: &[RegistryName]| names.iter().map(ToString::to_string).collect();
        let mut config = base;
        if !plain_http.is_empty() {
            config.plain_http = PlainHttp::Hosts(names(plain_http));
        }
        config.unverified_tls = names(unverified_tls);
        for path in ca_files {
            config.certificates.extend(file::certificates(path)?);
        }
        if let Some(file) = auth_file {
            config.credentials = Credentials::from_files(vec![file.clone()]);
        }
        Ok(config)
    }
}

impl<const MIN: u64, const MAX: u64> From<Seconds<MIN, MAX>> for Duration {
    fn from(seconds: Seconds<MIN, MAX>) -> Self {
        Self::from_secs(seconds.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::membership::Listen;

    fn parse(text: &str) -> Result<Settings, String> {
        file::parse(Path::new("agent.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let settings = parse("").unwrap();
        assert_eq!(settings, Settings::default());
        let owner = settings.owner(ClientConfig::default()).unwrap();
        assert_eq!(owner.cache, Path::new("/var/lib/undermount"));
        assert_eq!((owner.patience, owner.quota), (Duration::from_secs(60).into(), None));
    }

    #[test]
    fn every_key_reaches_its_subsystem() {
        let text = "[cache]\ndirectory = '/srv/c'\nquota = '2 GiB'\n[reads]\ntimeout = 5\n\
                    on_outage = 'eio'\n\
                    [completion]\nwithin = 0\n[registries]\nplain_http = ['A.example:5000']\n\
                    unverified_tls = ['b.example']\nauth_file = '/x.json'\n";
        let owner = parse(text).unwrap().owner(ClientConfig::default()).unwrap();
        assert_eq!((owner.cache, owner.quota), ("/srv/c".into(), Some(2 << 30)));
        let patience = Patience { timeout: Duration::from_secs(5), on_outage: OnOutage::Eio };
        assert_eq!(owner.patience, patience);
        assert_eq!(owner.complete_within, Duration::ZERO);
        assert_eq!(owner.client.plain_http, PlainHttp::Hosts(vec!["a.example:5000".into()]));
        assert_eq!(owner.client.unverified_tls, ["b.example"]);
    }

    #[test]
    fn the_peers_section_reaches_the_agent() {
        let text = "[registries]\nplain_http = ['uc:8787']\n[peers]\nenabled = true\n\
                    network = ['fd00:2::/64', '172.16.2.0/24']\nport = 9000\n\
                    seeds = ['uc:8787']\nmembers = ['172.16.2.11:8788']\n\
                    bandwidth = '1 Gbit/s'\n";
        let settings = parse(text).unwrap();
        assert_eq!(parse(&settings.to_toml()).unwrap(), settings);
        let peers = settings.owner(ClientConfig::default()).unwrap().peers.unwrap();
        assert_eq!(peers.key_file, Path::new("/etc/undermount/cluster.key"));
        assert_eq!(peers.seeds, ["http://uc:8787/undermount"]);
        assert_eq!(peers.members, ["172.16.2.11:8788".parse().unwrap()]);
        assert_eq!(peers.bandwidth, Some(125_000_000));
        let networks = ["fd00:2::/64", "172.16.2.0/24"].map(|network| network.parse().unwrap());
        assert_eq!(peers.listen, Listen::In(networks.to_vec(), 9000));
    }

    #[test]
    fn what_is_shown_says_the_same_as_what_was_read() {
        let text = "[cache]\nquota = 1048576\n[mirror]\nlisten = '[::1]:5055'\n";
        let settings = parse(text).unwrap();
        assert_eq!(parse(&settings.to_toml()).unwrap(), settings);
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&json).unwrap(), settings);
    }

    #[test]
    fn the_packaged_file_is_valid_and_says_the_defaults_also_without_its_comments() {
        let text = include_str!("../../packaging/etc/agent.toml");
        assert_eq!(parse(text).unwrap(), Settings::default());
        // Keys are commented out by "#key", words by "# word".
        let keys = text.lines().map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        });
        let mut settings = parse(&keys.collect::<Vec<_>>().join("\n")).unwrap();
        assert!(settings.cache.quota.take().is_some(), "the example has a quota");
        assert!(settings.cache.reserve.take().is_some(), "the example has a reserve");
        assert!(settings.mounts.selinux_context.take().is_some(), "the example has a context");
        assert!(settings.mirror.listen.take().is_some(), "the example has a mirror");
        assert!(settings.metrics.listen.take().is_some(), "the example tells metrics");
        assert!(settings.peers.bandwidth.take().is_some(), "the example has a bandwidth");
        assert!(settings.peers.tls_ca.take().is_some(), "the example has certificates");
        assert!(settings.peers().is_none(), "nothing is shared unless that is asked for");
        settings.registries = RegistrySettings::default();
        settings.peers = PeerSettings::default();
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn mistakes_are_refused_by_line_with_what_is_allowed() {
        for (text, line, words) in [
            (
                "[cache]\nqouta = 1\n",
                2,
                "unknown key `qouta`, expected one of `directory`, `quota`",
            ),
            ("\n[cahce]\n", 2, "unknown key `cahce`, expected one of `cache`, `reads`"),
            ("[cache]\nquota = 'lots'\n", 2, "a number of bytes, or a number with KiB, MiB, GiB"),
            ("[cache]\nquota = 1\n", 2, "at least 1 MiB"),
            ("[cache]\ndirectory = 'here'\n", 2, "an absolute path"),
            (
                "[cache]\ndirectory = 5\n",
                2,
                "invalid value: integer `5`, expected an absolute path",
            ),
            ("[reads]\n\ntimeout = 0\n", 3, "a whole number of seconds from 1 to 3600"),
            ("[reads]\ntimeout = '60'\n", 2, "a whole number of seconds from 1 to 3600"),
            ("[reads]\ndata_mode = 'fast'\n", 2, "expected `cached` or `passthrough`"),
            ("[reads]\non_outage = 'panic'\n", 2, "expected `wait` or `eio`"),
            (
                "[mounts]\nselinux_context = 'fusefs_t'\n",
                2,
                "USER:ROLE:TYPE or USER:ROLE:TYPE:LEVEL",
            ),
            ("[completion]\nwithin = -1\n", 2, "a whole number of seconds from 0 to 604800"),
            ("[profiles]\nstarts = 'sometimes'\n", 2, "expected one of `share`, `keep`, `off`"),
            ("[registries]\nplain_http = ['a', 'b/c']\n", 2, "HOST or HOST:PORT"),
            ("[registries]\nca_files = 'x'\n", 2, "expected a sequence"),
            ("[store]\nmount = '/a:b'\n", 2, "an absolute path without `:` and `,`"),
            ("[mirror]\nlisten = '0.0.0.0:5055'\n", 2, "a loopback address with a port"),
            ("[metrics]\nlisten = '9090'\n", 2, "an IP address with a port"),
            ("[peers]\nnetwork = ['172.16.2.0']\n", 2, "a network, such as"),
            ("[peers]\nlisten = ['172.16.2.1']\n", 2, "an address with a port"),
            ("[peers]\nport = 0\n", 2, "a port from 1 to 65535"),
            ("[peers]\nbandwidth = 5\n", 2, "a number with Mbit/s or Gbit/s"),
            ("[peers]\nseeds = ['a/b']\n", 2, "a registry, HOST:PORT"),
            ("[peers]\nkey_file = 'key'\n", 2, "an absolute path"),
            ("\n[peers]\nenabled = true\n", 2, "peers need `network`"),
            ("[peers]\nlisten = ['0.0.0.0:1']\n", 1, "has to say in `advertise`"),
            ("[peers]\ntls_key = '/k'\n", 1, "takes all of `tls_certificate`"),
            ("[peers]\nnetwork = ['10.0.0.0/8']\nlisten = ['10.0.0.1:1']\n", 1, "name one of them"),
            ("[cache]\nquota = '1 GiB\n", 2, ""),
        ] {
            let said = parse(text).unwrap_err();
            let place = format!("agent.toml:{line}: ");
            assert!(said.starts_with(&place) && said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn a_ca_file_that_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let mut settings = Settings::default();
        settings.registries.ca_files = vec![path.clone()];
        let message =
            |settings: &Settings| settings.client(ClientConfig::default()).unwrap_err().to_string();
        assert!(message(&settings).contains("ca.pem"));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(message(&settings).contains("holds no certificate"), "{}", message(&settings));
    }
}

//! The names of all metrics. `packaging/doc/metrics.md` says what to make of them, and the
//! dashboard in `packaging/grafana` uses no others; a test holds both to this list.

/// A metric as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name. Totals end in `_total`.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
}

impl Metric {
    const fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help }
    }

    /// The name without the ending of totals, which the encoder adds again.
    pub fn stem(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}

macro_rules! metrics {
    ($(#[$doc:meta])* $list:ident: $($constant:ident = $name:literal, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric::new($name, $help);
        )+
        $(#[$doc])*
        pub const $list: &[Metric] = &[$($constant),+];
    };
}

metrics! {
    /// What an agent tells.
    AGENT:
    READS = "undermount_reads_total",
        "Reads that were answered, by where their bytes came from: `cache`, they were here; \
        `pack`, first read of what a start-up pack brought; `shared`, something else brought \
        them meanwhile; `registry`; `peer`";
    READ_BYTES = "undermount_read_bytes_total", "Bytes of these reads";
    READ_WAIT = "undermount_read_wait_seconds",
        "Time of reads that found bytes missing, from the question to the answer";
    READS_WAITING = "undermount_reads_waiting", "Reads that wait for missing bytes now";
    READ_ERRORS = "undermount_read_errors_total", "Reads that failed";
    READ_TIMEOUTS = "undermount_read_timeouts_total",
        "Reads that failed because their time was over";
    STUCK_REQUESTS = "undermount_stuck_requests",
        "Requests of the kernel that a thread has been at for 10 seconds; the worker is \
        replaced after 30";
    FETCHED_BYTES = "undermount_fetched_bytes_total",
        "Bytes that were fetched, by source: `registry` or `peer`";
    FETCHES_RUNNING = "undermount_fetches_running", "Transfers under way, by priority";
    FETCHES_WAITING = "undermount_fetches_waiting",
        "Transfers that wait for their turn, by priority";
    FALLBACKS = "undermount_fallbacks_total",
        "Layers that podman had to pull by itself, by reason";
    CACHE_BYTES = "undermount_cache_bytes", "Bytes of file contents in the cache";
    CACHE_QUOTA = "undermount_cache_quota_bytes",
        "Bytes of file contents that may be kept; absent where there is no limit";
    CACHE_OBJECTS = "undermount_cache_objects", "File contents in the cache, whole or in part";
    EVICTIONS = "undermount_cache_evicted_objects_total", "Objects that went to make room";
    UNKEPT = "undermount_cache_unkept_objects_total", "Objects that there was no room for";
    DAMAGED = "undermount_cache_damaged_objects_total",
        "Objects that were found damaged and dropped";
    LAZY_DEBT = "undermount_lazy_debt_bytes", "Bytes of the images in use that are not here";
    IMAGES = "undermount_images", "Images in use, by whom: `mount`, `podman` or `pin`";
    LAYERS = "undermount_layers",
        "Layers that podman is shown, by state: `shown`, it uses them or has looked for them \
        lately; `leaving`, it has removed them and somebody still uses them, or the kernel \
        has not forgotten them";
    LAYERS_DROPPED = "undermount_layers_dropped_total",
        "Layers that podman had removed and that take no memory any more";
    PACKS = "undermount_packs_total",
        "Start-up and update packs, by outcome: `used` or `given-up`";
    PACK_UNITS = "undermount_pack_units_total",
        "Files, and pieces of large ones, in these packs: `brought`, or `foreign` to the \
        image and left";
    PACK_BYTES = "undermount_pack_fetched_bytes_total", "Bytes of packs that were fetched";
    PEER_MEMBERS = "undermount_peer_members",
        "Nodes of the cluster that are believed to be alive, this one included";
    PEER_WEIGHT = "undermount_peer_weight",
        "This node's share of the pieces, in hundredths of an ordinary one; 0 while it drains";
    PEER_PIECES = "undermount_peer_pieces_total",
        "Pieces that were wanted here, for this node or for another one, by where they came \
        from: `local`, the pieces on this node's disk; `peer`; `registry`";
    PEER_PIECE_BYTES = "undermount_peer_piece_bytes_total", "Bytes of these pieces";
    PEER_UPLOADED = "undermount_peer_uploaded_pieces_total", "Pieces that were sent to peers";
    PEER_UPLOADED_BYTES = "undermount_peer_uploaded_bytes_total", "Bytes that were sent to peers";
    PEER_UPLOADS = "undermount_peer_uploads", "Transfers to peers under way";
    PEER_TURNED_AWAY = "undermount_peer_turned_away_total",
        "Requests of peers that got no piece: `redirected` to another peer, `busy`, or \
        `refused`, such as those without key or ticket";
    PEER_HEDGED = "undermount_peer_hedged_total",
        "Transfers from peers that were given up for being slow";
    PEER_LIES = "undermount_peer_lies_total", "How often a peer was found to send wrong bytes";
    PEER_SHUNNED = "undermount_peer_shunned",
        "Peers that are left alone for a while: `unreachable`, `foreign` to the cluster, or \
        `banned` for lying";
    PEER_KEPT = "undermount_peer_kept_bytes",
        "Bytes of the pieces on disk: `own`, which this node owns, or `held`, which it had \
        fetched for itself";
    PEER_DATAGRAMS = "undermount_peer_datagrams_total",
        "Datagrams that came: `taken`, or dropped for what is wrong with them";
    RESTARTS = "undermount_worker_restarts_total",
        "How often the process that serves the mounts had to be replaced";
    BUILD = "undermount_build_info", "1, for the version that runs";
}

metrics! {
    /// What a registry tells.
    REGISTRY:
    REGISTRY_REQUESTS = "undermount_registry_requests_total", "Answers by method and status";
    REGISTRY_IN_PROGRESS = "undermount_registry_requests_in_progress",
        "Requests whose answer has not been sent to its end";
    REGISTRY_SENT = "undermount_registry_sent_bytes_total", "Bytes of bodies that were sent";
    REGISTRY_RECEIVED = "undermount_registry_received_bytes_total",
        "Bytes of uploads that were received";
    REGISTRY_UPLOADS = "undermount_registry_uploads", "Uploads that have begun and not ended";
    REGISTRY_REFUSED_READS = "undermount_registry_refused_reads_total",
        "Reads of blobs that were refused because the client reads enough already";
    REGISTRY_COLLECTED = "undermount_registry_collected_blobs_total",
        "Blobs that were removed as garbage";
    REGISTRY_COLLECTED_BYTES = "undermount_registry_collected_bytes_total", "Bytes of such blobs";
    REGISTRY_INDEXED = "undermount_registry_images_indexed_total",
        "Images whose index was made here";
    REGISTRY_NOT_INDEXED = "undermount_registry_images_not_indexed_total",
        "Images of which no index could be made";
    REGISTRY_INDEXING = "undermount_registry_images_indexing", "Images whose index is being made";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_in_base_units() {
        let mut names: Vec<&str> = AGENT.iter().chain(REGISTRY).map(|metric| metric.name).collect();
        for name in &names {
            assert!(name.starts_with("undermount_"), "{name}");
            for unit in ["_ms", "_milliseconds", "_kb", "_mib", "_percent"] {
                assert!(!name.contains(unit), "{name}");
            }
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

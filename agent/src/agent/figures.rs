//! What an agent tells Prometheus, gathered whenever somebody looks (see [`crate::metrics`]).
//!
//! Most figures are counters that others keep. What takes a look at every file, the objects in
//! the cache and what images lack, is looked up seldom enough to cost next to nothing, and told
//! as it was.

mod peers;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use undermount_fs::fill::{Layer, Readings, WAIT_BOUNDS_MICROS};
use undermount_fs::session::Pulse;
use undermount_fs::trail::Origin;
use undermount_fs::view::View;

use super::images::{Images, missing_bytes};
use super::layers::LayerShelf;
use super::owner::Owner;
use super::peers::Peers;
use super::pins::Pins;
use super::sharing::Sharing;
use crate::metrics::{CONTENT_TYPE, Page, Times, names};
use crate::registry::server::listen;
use crate::supply::{Ledger, Queue};

/// How long to wait until the port is tried again.
const PAUSE: Duration = Duration::from_secs(5);
/// How long answers in progress may take at the end.
const GRACE: Duration = Duration::from_secs(2);

/// Threads that are at a request for this long are told of.
const STUCK: Duration = Duration::from_secs(10);

/// The least time between two surveys, each of which looks at every file.
const SURVEY_EVERY: Duration = Duration::from_secs(60);
/// Surveys take at most one part in so many of the time.
const SURVEY_SHARE: u32 = 100;

/// Where the figures come from.
pub struct Figures {
    /// Reads.
    pub view: Arc<View>,
    /// The cache.
    pub images: Arc<Images>,
    /// What was fetched.
    pub ledger: Arc<Ledger>,
    /// What is to be fetched.
    pub queue: Queue,
    /// What is mounted.
    pub owner: Arc<Owner>,
    /// What podman uses.
    pub layers: LayerShelf,
    /// What is pinned.
    pub pins: Arc<Pins>,
    /// The other nodes.
    pub peers: Option<Arc<Peers>>,
    /// What is shared with them.
    pub sharing: Option<Sharing>,
    /// The threads that take requests.
    pub pulse: Arc<Pulse>,
    /// How often the worker had to be replaced.
    pub restarts: u64,
    /// The last look at every file.
    pub survey: Mutex<Survey>,
}

/// What a look at every file has shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Survey {
    next: Option<Instant>,
    objects: u64,
    debt: u64,
}

/// Serves `figures` at `address`, `GET /metrics`, until `shutdown`. What keeps it from that is
/// logged, and tried again: the worker before may still have the port.
pub async fn run(address: SocketAddr, figures: Figures, shutdown: CancellationToken) {
    let app = Router::new().route("/metrics", get(tell)).with_state(Arc::new(figures));
    while !shutdown.is_cancelled() {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!(%address, "metrics are told");
                return listen::serve(listener, None, app, &shutdown, GRACE).await;
            }
            Err(error) => tracing::error!(%address, %error, "cannot listen for metrics"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn tell(State(figures): State<Arc<Figures>>) -> Response {
    let survey = figures.clone().survey().await;
    let page = figures.page(survey).await;
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], page.render()).into_response()
}

impl Figures {
    async fn page(&self, survey: Survey) -> Page {
        let mut page = Page::default();
        reads(&mut page, &self.view.filler().meter().readings());
        self.fetches(&mut page);
        self.cache(&mut page, survey);
        let members = self.peers.as_ref().map(|peers| peers.membership.status());
        peers::members(&mut page, members.as_ref());
        let traffic = self.sharing.as_ref().map(|sharing| sharing.exchange.traffic());
        peers::traffic(&mut page, &traffic.unwrap_or_default());
        let images = [
            ("mount", self.owner.count().await),
            ("podman", self.layers.in_use().len()),
            ("pin", self.pins.count().await),
        ];
        page.gauges(names::IMAGES, "use", images.map(|(by, count)| (by, count as u64)));
        let layers = self.layers.census();
        let states = [("shown", layers.shown), ("leaving", layers.leaving)];
        page.gauges(names::LAYERS, "state", states);
        page.counter(names::LAYERS_DROPPED, layers.dropped);
        page.counters(names::FALLBACKS, "reason", self.layers.refusals());
        page.gauge(names::STUCK_REQUESTS, self.pulse.stuck(STUCK).into());
        page.counter(names::RESTARTS, self.restarts);
        page.gauges(names::BUILD, "version", [(env!("CARGO_PKG_VERSION"), 1)]);
        page
    }

    fn fetches(&self, page: &mut Page) {
        page.counters(names::FETCHED_BYTES, "source", self.ledger.by_source());
        let lengths = self.queue.lengths();
        let running = lengths.iter().map(|length| (length.priority, length.running as u64));
        page.gauges(names::FETCHES_RUNNING, "priority", running);
        let waiting = lengths.iter().map(|length| (length.priority, length.waiting as u64));
        page.gauges(names::FETCHES_WAITING, "priority", waiting);
    }

    fn cache(&self, page: &mut Page, survey: Survey) {
        let store = self.view.filler().store();
        let usage = store.usage();
        page.gauge(names::CACHE_BYTES, usage.bytes);
        if let Some(quota) = store.limits().quota {
            page.gauge(names::CACHE_QUOTA, quota);
        }
        page.gauge(names::CACHE_OBJECTS, survey.objects);
        page.counter(names::EVICTIONS, usage.evicted);
        page.counter(names::UNKEPT, usage.unkept);
        page.counter(names::DAMAGED, usage.damaged);
        page.gauge(names::LAZY_DEBT, survey.debt);
    }

    /// The last look at every file, or a new one where it is time.
    async fn survey(self: Arc<Self>) -> Survey {
        let known = *self.lock_survey();
        if known.next.is_some_and(|next| Instant::now() < next) {
            return known;
        }
        let figures = self.clone();
        let look = tokio::task::spawn_blocking(move || figures.look());
        look.await.unwrap_or(known)
    }

    fn look(&self) -> Survey {
        let begin = Instant::now();
        let store = &self.images.cache().store;
        let objects = store.survey().map_or(0, |objects| objects.len() as u64);
        let debt = debt(&self.images, &self.view.layers());
        let pause = SURVEY_EVERY.max(begin.elapsed() * SURVEY_SHARE);
        let survey = Survey { next: Some(Instant::now() + pause), objects, debt };
        *self.lock_survey() = survey;
        survey
    }

    fn lock_survey(&self) -> std::sync::MutexGuard<'_, Survey> {
        self.survey.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reads(page: &mut Page, readings: &Readings) {
    let answered = || Origin::ALL.into_iter().zip(&readings.answered);
    page.counters(names::READS, "source", answered().map(|(origin, it)| (origin, it.reads)));
    page.counters(names::READ_BYTES, "source", answered().map(|(origin, it)| (origin, it.bytes)));
    let buckets = WAIT_BOUNDS_MICROS.into_iter().zip(readings.waits).collect();
    let longer = readings.waits[WAIT_BOUNDS_MICROS.len()];
    page.histogram(names::READ_WAIT, Times { buckets, longer, sum: readings.waited });
    page.gauge(names::READS_WAITING, readings.waiting);
    page.counter(names::READ_ERRORS, readings.failed);
    page.counter(names::READ_TIMEOUTS, readings.late);
    let packs = readings.packs;
    let outcomes = [("used", packs.used), ("given-up", packs.given_up)];
    page.counters(names::PACKS, "outcome", outcomes);
    let units = [("brought", packs.units), ("foreign", packs.foreign)];
    page.counters(names::PACK_UNITS, "outcome", units);
    page.counter(names::PACK_BYTES, packs.fetched);
}

/// Bytes of the distinct contents of `layers` that are not here. What is damaged is told where it
/// is read.
fn debt(images: &Images, layers: &[Arc<Layer>]) -> u64 {
    let (store, mut seen) = (&images.cache().store, HashSet::new());
    layers.iter().filter_map(|layer| missing_bytes(store, &layer.tree, &mut seen).ok()).sum()
}

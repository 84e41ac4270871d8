//! The seed: what `undermount registry` knows of the members.
//!
//! The seed is not a member. It often cannot reach the network that the members use among
//! themselves, while each of them reaches it, to pull images. So it only listens:
//!
//! ```text
//! POST /v1/join -> note the member, or strike it off where it leaves -> the list, sealed, or 204
//! ```
//!
//! A member that is not heard of for [`KEPT`] is struck off; members say every
//! [`super::SEED_REFRESH`] that they are still there. The list is kept in memory: a restarted seed
//! has it back once each member has spoken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

use super::identity::Identity;
use super::inquiry::{JOIN, JoinRequest, MAX_JOIN};
use super::routes::{answer, check_join};
use super::swim::Record;
use crate::peer::keys::ClusterKeys;
use crate::peer::member::MemberId;

/// How long a member stays on the list without being heard of.
pub const KEPT: Duration = Duration::from_secs(200);

/// The most nodes on the list. Only holders of the key can get on it.
const MAX_MEMBERS: usize = 20_000;

/// The list, and the keys of those who may see it.
struct Seed {
    keys: ClusterKeys,
    heard: Mutex<Heard>,
}

/// Members, and when they were heard of.
#[derive(Default)]
struct Heard(BTreeMap<MemberId, (Identity, Instant)>);

impl Heard {
    /// Notes what a member says of itself at `now`.
    fn take(&mut self, request: JoinRequest, now: Instant) {
        let JoinRequest { member, leaves, .. } = request;
        let (id, age) = (member.id, member.age());
        if self.0.get(&id).is_some_and(|(known, _)| known.age() > age) {
            return;
        }
        if leaves {
            self.0.remove(&id);
        } else if self.0.contains_key(&id) || self.0.len() < MAX_MEMBERS {
            self.0.insert(id, (member, now));
        }
    }

    /// The members that were heard of within [`KEPT`], as of `now`.
    fn list(&mut self, now: Instant) -> Vec<Record> {
        self.0.retain(|_, (_, heard)| now.duration_since(*heard) <= KEPT);
        self.0.values().map(|(member, _)| Record::alive(member.clone())).collect()
    }
}

/// The routes of a seed, for those that have one of `keys`.
pub fn router(keys: ClusterKeys) -> Router {
    let seed = Arc::new(Seed { keys, heard: Mutex::default() });
    Router::new().route(JOIN, post(join)).layer(DefaultBodyLimit::max(MAX_JOIN)).with_state(seed)
}

async fn join(State(seed): State<Arc<Seed>>, headers: HeaderMap, body: Bytes) -> Response {
    let (caller, request) = match check_join(&seed.keys, &headers, &body) {
        Ok(joining) => joining,
        Err(response) => return *response,
    };
    let wants_state = request.wants_state;
    let list = {
        let mut heard = seed.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        heard.take(request, now);
        wants_state.then(|| heard.list(now))
    };
    match list {
        Some(list) => answer(&seed.keys, &caller, &list),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity::testing::identity;
    use super::*;

    fn says(number: u8, leaves: bool) -> JoinRequest {
        JoinRequest { member: identity(number), leaves, wants_state: true }
    }

    fn names(heard: &mut Heard, now: Instant) -> Vec<u8> {
        heard.list(now).iter().map(|record| record.id().id.as_bytes()[0]).collect()
    }

    #[test]
    fn who_is_silent_or_leaves_is_taken_off() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        for number in 1..=3 {
            heard.take(says(number, false), start);
        }
        heard.take(says(2, true), start);
        assert_eq!(names(&mut heard, start), [1, 3]);
        let later = start + KEPT;
        heard.take(says(3, false), later);
        assert_eq!(names(&mut heard, later + Duration::from_secs(1)), [3]);
    }

    #[test]
    fn an_old_good_bye_does_not_take_a_new_life_away() {
        let (mut heard, now) = (Heard::default(), Instant::now());
        let new = Identity { epoch: identity(1).epoch + 1, ..identity(1) };
        heard.take(JoinRequest { member: new, ..says(1, false) }, now);
        heard.take(says(1, true), now);
        assert_eq!(names(&mut heard, now), [1]);
    }
}

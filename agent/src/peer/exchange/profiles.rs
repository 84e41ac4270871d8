//! Profiles of starts: handed to the members that keep them, and asked for there.
//!
//! ```text
//! profiles:       keepers of the repository -> ask one after the other, until one has some
//! offer_profile:  keepers of the repository -> HEAD: enough starts already? -> PUT
//! kept_profiles, keep_profile: this node as a keeper, for itself and for the server
//! ```

use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::time::timeout;
use undermount_fs::digest::Digest;
use undermount_fs::source::Scope;

use super::Exchange;
use crate::blocking::blocking;
use crate::peer::client::profiles::Unheard;
use crate::peer::keys::Ticket;
use crate::peer::member::{Member, MemberId};
use crate::peer::profiles::{
    ASKED, Answer, BadProfiles, KEEPERS, ONE_MAX, ProfileCall, keepers, pack, unpack, unpack_start,
};
use crate::peer::realm::Realm;
use crate::profile::{ENOUGH, ProfileError, StartRecord};

/// A member that keeps profiles of a repository.
struct Keeper {
    id: MemberId,
    /// How to reach it, and the ticket to show to it; `None` for this node.
    other: Option<(Member, Option<Ticket>)>,
}

/// Why a profile is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It is not the profile of one start of this image.
    #[error("not a profile: {0}")]
    Bad(#[from] BadProfiles),
    /// This node cannot write it.
    #[error("this node cannot keep profiles")]
    Disk(#[source] ProfileError),
}

impl Exchange {
    /// What starts of the image `manifest` have read, or else starts of another build in the
    /// repository `scope`, as far as its keepers know of any and answer `within` this time: each of
    /// them has an equal share of what is left, so that one that hangs does not hide what the others
    /// know. Unverified: see [`crate::peer::profiles`].
    pub async fn profiles(
        &self,
        scope: &Scope,
        manifest: &Digest,
        within: Duration,
    ) -> Vec<StartRecord> {
        let Some(call) = ProfileCall::new(scope, manifest) else { return Vec::new() };
        let end = Instant::now() + within;
        let keepers = timeout(within, self.keepers(scope, ASKED)).await.unwrap_or_default();
        for (keeper, unasked) in keepers.iter().zip((1..=keepers.len() as u32).rev()) {
            let share = end.saturating_duration_since(Instant::now()) / unasked;
            let records = timeout(share, self.ask(keeper, &call)).await.unwrap_or_else(|_| {
                tracing::debug!(member = %keeper.id, "does not tell of profiles in time");
                Vec::new()
            });
            if !records.is_empty() {
                return records;
            }
        }
        Vec::new()
    }

    /// The profiles that `keeper` has for `call`; none where it does not answer as it should.
    async fn ask(&self, keeper: &Keeper, call: &ProfileCall) -> Vec<StartRecord> {
        let body = match &keeper.other {
            None => {
                let realm = self.realms().of(&call.scope).await;
                self.kept_profiles(realm, call.clone()).await.profiles
            }
            Some((member, ticket)) => {
                let told = self.client().profiles(member, call, ticket.clone()).await;
                self.heard(keeper.id, told).map(Bytes::from)
            }
        };
        let Some(body) = body else { return Vec::new() };
        let read = blocking(move || unpack(&body)).await;
        let read = read.map_err(|bad| Unheard::Lies(bad.to_string()));
        let mut records = self.heard(keeper.id, read).unwrap_or_default();
        records.retain(|record| call.is_answered_by(record));
        records
    }

    /// Hands what one start has read to those keepers of the repository `scope` that have fewer than
    /// [`ENOUGH`] starts of the image.
    pub async fn offer_profile(&self, scope: &Scope, record: &StartRecord) {
        let Some(call) = ProfileCall::new(scope, &record.manifest) else { return };
        let record = record.clone();
        let body = blocking(move || pack(&[record])).await;
        if body.len() > ONE_MAX {
            return tracing::debug!(%scope, size = body.len(), "the profile is too long for peers");
        }
        for Keeper { id, other } in self.keepers(scope, KEEPERS).await {
            let Some((member, ticket)) = other else {
                let realm = self.realms().of(scope).await;
                if let Err(error) = self.keep_profile(realm, &call, body.clone()).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot keep a profile for peers");
                }
                continue;
            };
            let given = self.give_profile(&member, &call, ticket, body.clone()).await;
            self.heard(id, given);
        }
    }

    async fn give_profile(
        &self,
        member: &Member,
        call: &ProfileCall,
        ticket: Option<Ticket>,
        body: Bytes,
    ) -> Result<(), Unheard> {
        let starts = self.client().recorded_starts(member, call, ticket.clone()).await?;
        if starts >= ENOUGH {
            return Ok(());
        }
        self.client().give_profile(member, call, ticket, body).await
    }

    /// What this node itself keeps of the image of `call`, for `realm`.
    pub(in crate::peer) async fn kept_profiles(&self, realm: Realm, call: ProfileCall) -> Answer {
        let exchange = self.clone();
        blocking(move || exchange.0.profiles.answer(realm, &call)).await
    }

    /// Keeps a start for `realm` that comes as a body; `false` where there are [`ENOUGH`] already.
    ///
    /// # Errors
    /// [`KeepError`] where it is not a start of the image of `call`, or cannot be written.
    pub(in crate::peer) async fn keep_profile(
        &self,
        realm: Realm,
        call: &ProfileCall,
        body: Bytes,
    ) -> Result<bool, KeepError> {
        let (exchange, call) = (self.clone(), call.clone());
        let keep = move || {
            let record = unpack_start(&body, &call)?;
            exchange.0.profiles.keep(realm, &call.scope, record).map_err(KeepError::Disk)
        };
        blocking(keep).await
    }

    /// The `most` members that rank highest for the profiles of `scope`, without those that are
    /// shunned at present.
    async fn keepers(&self, scope: &Scope, most: usize) -> Vec<Keeper> {
        let members = self.roster().members();
        let mut found = Vec::new();
        for id in keepers(scope, &members, most) {
            let other = match members.get(&id) {
                _ if id == self.roster().own => None,
                Some(member) if !self.standing().shuns(&id, self.now()) => {
                    let ticket = self.realms().ticket(scope, id, SystemTime::now()).await;
                    Some((member.clone(), ticket))
                }
                _ => continue,
            };
            found.push(Keeper { id, other });
        }
        found
    }

    /// What `member` has said, if it did. Its standing suffers as with pieces where it cannot be
    /// reached, is foreign or lies; silence costs it nothing, since the time was ours to set.
    fn heard<T>(&self, member: MemberId, said: Result<T, Unheard>) -> Option<T> {
        let now = self.now();
        let unheard = match said {
            Ok(said) => return Some(said),
            Err(unheard) => unheard,
        };
        tracing::debug!(%member, %unheard, "no answer about profiles");
        match unheard {
            Unheard::Unreachable => self.standing().unreachable(member, now),
            Unheard::Foreign => self.standing().foreign(member, now),
            Unheard::Lies(words) => {
                tracing::warn!(%member, words, "a peer lies");
                self.standing().lied(member, words, now);
            }
            Unheard::NoAnswer | Unheard::Refused(_) => {}
        }
        None
    }
}

#[cfg(test)]
mod tests;

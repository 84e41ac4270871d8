//! Profiles of starts: told to those who keep them, and asked for there.

use std::time::SystemTime;

use bytes::Bytes;
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

/// Who keeps profiles.
struct Keeper {
    id: MemberId,
    /// How to ask it, and what to show to it; `None` for this node.
    other: Option<(Member, Option<Ticket>)>,
}

/// A profile is not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It is none of a start of this image.
    #[error("not a profile: {0}")]
    Bad(#[from] BadProfiles),
    /// This node cannot write it.
    #[error("this node cannot keep profiles")]
    Disk(#[source] ProfileError),
}

impl Exchange {
    /// What starts of the image `manifest` have read, or else starts of another build in the
    /// repository `scope`, as far as its keepers know of any. Unverified: see
    /// [`crate::peer::profiles`].
    pub async fn profiles(&self, scope: &Scope, manifest: &Digest) -> Vec<StartRecord> {
        let Some(call) = ProfileCall::new(scope, manifest) else { return Vec::new() };
        for keeper in self.keepers(scope, ASKED).await {
            let records = self.ask(&keeper, &call).await;
            if !records.is_empty() {
                return records;
            }
        }
        Vec::new()
    }

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

    /// Tells the keepers of the repository `scope` what one start has read, where they want more.
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

    /// Keeps a start for `realm` that comes as a body; `false` where there are enough.
    ///
    /// # Errors
    /// [`KeepError`]
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

    /// The `most` members that are the first to keep the profiles of `scope`, but for those that
    /// are left alone.
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

    /// What a member has said, if it did; its standing suffers as with pieces.
    fn heard<T>(&self, member: MemberId, said: Result<T, Unheard>) -> Option<T> {
        let now = self.now();
        let unheard = match said {
            Ok(said) => return Some(said),
            Err(unheard) => unheard,
        };
        tracing::debug!(%member, %unheard, "asked about profiles");
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

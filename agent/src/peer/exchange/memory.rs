//! Memory for pieces that are on their way: bounded in all, and for what one member asks for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::peer::member::MemberId;

/// The most bytes of pieces that may be on their way at a time.
const ALL: u64 = 256 << 20;
/// The most of these bytes that one member may have asked for: one piece of the largest size, so
/// that no member takes the room of all others.
const PER_MEMBER: u64 = 64 << 20;
/// The unit, in bytes, in which memory is counted: no piece counts for less.
const GRAIN: u64 = 256 << 10;

/// The memory of a node.
pub(super) struct Memory {
    free: Arc<Semaphore>,
    asked: Arc<Asked>,
}

/// The grains in use, by the member that has asked for them.
#[derive(Default)]
struct Asked(Mutex<HashMap<MemberId, u32>>);

/// The memory of a piece, given back when this is dropped.
pub(in crate::peer) struct Room {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

/// The part of a member's share that one piece takes.
struct Share {
    asked: Arc<Asked>,
    member: MemberId,
    grains: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(grains(ALL) as usize)), asked: Arc::default() }
    }
}

impl Memory {
    /// Waits for memory for a piece of `size` bytes.
    pub async fn room(&self, size: u64) -> Room {
        let permit = self.free.clone().acquire_many_owned(grains(size)).await;
        Room { _permit: permit.expect("the semaphore is never closed"), _share: None }
    }

    /// Takes memory for a piece of `size` bytes that `member` asks for; `None` if none is free, or
    /// the member's share is used up.
    pub fn room_for(&self, member: MemberId, size: u64) -> Option<Room> {
        let grains = grains(size);
        let share = Share::take(&self.asked, member, grains)?;
        let permit = self.free.clone().try_acquire_many_owned(grains).ok()?;
        Some(Room { _permit: permit, _share: Some(share) })
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, HashMap<MemberId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    fn take(asked: &Arc<Asked>, member: MemberId, more: u32) -> Option<Self> {
        let mut members = asked.lock();
        let before = members.get(&member).copied().unwrap_or_default();
        if before + more > grains(PER_MEMBER) {
            return None;
        }
        members.insert(member, before + more);
        Some(Self { asked: asked.clone(), member, grains: more })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut members = self.asked.lock();
        let Some(grains) = members.get_mut(&self.member) else { return };
        *grains -= self.grains;
        if *grains == 0 {
            members.remove(&self.member);
        }
    }
}

fn grains(size: u64) -> u32 {
    u32::try_from(size.clamp(1, ALL).div_ceil(GRAIN)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::wanted::MAX_PIECE;

    fn id(number: u8) -> MemberId {
        MemberId::from_bytes([number; 16])
    }

    #[test]
    fn regression_one_member_does_not_take_the_memory_of_all() {
        let memory = Memory::default();
        let most = |member| -> Vec<Room> {
            std::iter::from_fn(|| memory.room_for(id(member), 1 << 20)).take(1000).collect()
        };
        let first = most(1);
        assert_eq!(first.len() as u64, PER_MEMBER >> 20);
        assert!(memory.room_for(id(2), MAX_PIECE).is_some(), "others have room");
        drop(first);
        assert!(memory.room_for(id(1), MAX_PIECE).is_some(), "it has room again");
        assert!(memory.asked.lock().is_empty());
    }

    #[test]
    fn all_members_together_get_no_more_than_there_is() {
        let memory = Memory::default();
        let rooms: Vec<_> = (0..8).filter_map(|n| memory.room_for(id(n), PER_MEMBER)).collect();
        assert_eq!(rooms.len() as u64, ALL / PER_MEMBER);
        assert!(memory.room_for(id(9), 1).is_none());
        assert!(!memory.asked.lock().contains_key(&id(9)), "nothing is noted of a refusal");
    }
}

//! The part of the FUSE wire protocol that `fuser` keeps to itself: pure, bytes in and bytes out.
//!
//! The keeper speaks it for three purposes only: it answers `FUSE_INIT`, it sends requests back
//! into the queue, and it answers with an error on behalf of a worker that died. A worker uses it
//! to give its `fuser` a `FUSE_INIT`. Everything else is spoken by `fuser`. Layouts:
//! `include/uapi/linux/fuse.h`, native byte order.
//!
//! ```text
//! request  | len 4 | opcode 4 | unique 8 | nodeid 8 | uid 4 | gid 4 | pid 4 | ext 2 | pad 2 | body
//! reply    | len 4 | error 4  | unique 8 | body
//! notice   | len 4 | code 4   |    0   8 | body          a reply to nothing
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol version that the keeper speaks. The minor number is that of the structs below
/// (Linux 6.9); a kernel with a smaller one ignores what it does not know.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 40;

/// Opcodes that a keeper has to know.
pub(super) const FUSE_FORGET: u32 = 2;
pub(super) const FUSE_INIT: u32 = 26;
pub(super) const FUSE_INTERRUPT: u32 = 36;
pub(super) const FUSE_BATCH_FORGET: u32 = 42;

/// The notice that puts every unanswered request back into the queue (Linux 6.9).
const FUSE_NOTIFY_RESEND: i32 = 7;

/// Set in the unique id of a request that was sent again.
pub(super) const RESENT: u64 = 1 << 63;

/// The distance between the unique ids of requests; odd ids belong to interrupts.
pub(super) const UNIQUE_STEP: u64 = 2;

/// The smallest buffer, in bytes, into which the kernel lets a request be read
/// (`FUSE_MIN_READ_BUFFER`); it is enough while `max_write` is 4 KiB.
pub(super) const READ_BUFFER: usize = 8192;

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) total_extlen: u16,
    pub(super) padding: u16,
}

/// `struct fuse_out_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// `struct fuse_init_in`. Kernels before 5.17 send the first 16 bytes only.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) flags2: u32,
    pub(super) unused: [u32; 11],
}

/// `struct fuse_init_out`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitOut {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) max_background: u16,
    pub(super) congestion_threshold: u16,
    pub(super) max_write: u32,
    pub(super) time_gran: u32,
    pub(super) max_pages: u16,
    pub(super) map_alignment: u16,
    pub(super) flags2: u32,
    pub(super) max_stack_depth: u32,
    pub(super) unused: [u32; 6],
}

/// A request without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub(super) opcode: u32,
    pub(super) unique: u64,
}

impl RequestHead {
    /// Whether the kernel awaits an answer.
    pub(super) fn wants_answer(&self) -> bool {
        !matches!(self.opcode, FUSE_FORGET | FUSE_BATCH_FORGET | FUSE_INTERRUPT)
    }
}

/// Splits a request as it came from the device into head and body; `None` if it is too short.
pub(super) fn split_request(packet: &[u8]) -> Option<(RequestHead, &[u8])> {
    let (header, body) = InHeader::read_from_prefix(packet).ok()?;
    Some((RequestHead { opcode: header.opcode, unique: header.unique }, body))
}

/// The body of `FUSE_INIT`, with zeros for what an older kernel does not send; `None` if even the
/// oldest fields are missing.
pub(super) fn parse_init(body: &[u8]) -> Option<InitIn> {
    const SHORTEST: usize = 16;
    let mut init = InitIn::default();
    let len = body.len().min(size_of::<InitIn>());
    init.as_mut_bytes()[..len].copy_from_slice(&body[..len]);
    (len >= SHORTEST).then_some(init)
}

/// A `FUSE_INIT` request as the kernel would send it.
pub(super) fn init_request(unique: u64, init: &InitIn) -> Vec<u8> {
    let header = InHeader {
        len: (size_of::<InHeader>() + size_of::<InitIn>()) as u32,
        opcode: FUSE_INIT,
        unique,
        nodeid: 0,
        uid: 0,
        gid: 0,
        pid: 0,
        total_extlen: 0,
        padding: 0,
    };
    [header.as_bytes(), init.as_bytes()].concat()
}

/// The answer to `FUSE_INIT`.
pub(super) fn init_reply(unique: u64, init: &InitOut) -> Vec<u8> {
    let header =
        OutHeader { len: (size_of::<OutHeader>() + size_of::<InitOut>()) as u32, error: 0, unique };
    [header.as_bytes(), init.as_bytes()].concat()
}

/// An answer that is nothing but an error number (positive, as in `errno`).
pub(super) fn error_reply(unique: u64, errno: i32) -> OutHeader {
    OutHeader { len: size_of::<OutHeader>() as u32, error: -errno, unique }
}

/// The notice that makes the kernel send unanswered requests again.
pub(super) fn resend_notice() -> OutHeader {
    OutHeader { len: size_of::<OutHeader>() as u32, error: FUSE_NOTIFY_RESEND, unique: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_sizes_of_the_kernel_header() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitIn>(), 64);
        assert_eq!(size_of::<InitOut>(), 64);
    }

    #[test]
    fn a_request_is_split_into_head_and_body() {
        let packet = init_request(4, &InitIn { major: 7, minor: 31, ..InitIn::default() });
        let (head, body) = split_request(&packet).unwrap();
        assert_eq!(head, RequestHead { opcode: FUSE_INIT, unique: 4 });
        assert_eq!(parse_init(body).unwrap().minor, 31);
        assert!(split_request(&packet[..39]).is_none());
    }

    #[test]
    fn a_short_init_of_an_old_kernel_is_padded() {
        let init =
            InitIn { major: 7, minor: 34, max_readahead: 1 << 17, flags: 9, ..<_>::default() };
        let parsed = parse_init(&init.as_bytes()[..16]).unwrap();
        assert_eq!((parsed.flags, parsed.flags2), (9, 0));
        assert!(parse_init(&init.as_bytes()[..12]).is_none());
    }

    #[test]
    fn forgets_and_interrupts_want_no_answer() {
        for opcode in [FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT] {
            assert!(!RequestHead { opcode, unique: 2 }.wants_answer());
        }
        assert!(RequestHead { opcode: FUSE_INIT, unique: 2 }.wants_answer());
    }
}

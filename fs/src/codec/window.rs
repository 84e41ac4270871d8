//! Windows that hold only what is needed.
//!
//! To decode from a checkpoint, inflate needs the 32 KiB of output before it, but the data that
//! follows refers to a small part of them. [`sparse`] zeroes the rest, after which zstd shrinks
//! a window to a tenth of what it would be.
//!
//! To find the referenced bytes, the next 32 KiB are decoded twice against made-up windows that
//! spell out their own positions: byte `i` is `i & 255` in the first and that plus `1 + (i >> 8)`
//! in the second. Output bytes that are equal in both are literals; the difference of the others
//! names the position they were copied from. After 32 KiB no reference can reach the window.

use super::inflate::{Corrupt, Inflate, State, Step, Stop, WINDOW, Wrapper};

/// Where raw deflate data starts: inside a byte or at one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitStart {
    /// How many upper bits of `byte` come first, 0 to 7.
    pub bits: u8,
    /// The byte that holds them.
    pub byte: u8,
}

impl BitStart {
    /// A raw stream that begins here and has `window` behind it.
    ///
    /// # Errors
    /// [`Corrupt`] where the window is longer than 32 KiB.
    pub fn inflate(self, window: &[u8]) -> Result<Inflate, Corrupt> {
        let mut inflate = Inflate::new(Wrapper::Raw);
        if self.bits > 0 {
            inflate.prime(self.byte, self.bits);
        }
        inflate.set_window(window)?;
        Ok(inflate)
    }
}

/// A window reduced to what some data refers to.
pub struct Reduced {
    /// The window with every other byte zeroed, and without what lies before the first byte
    /// referred to. Empty where nothing is referred to.
    pub window: Vec<u8>,
    /// Whether the data ended or reached 32 KiB of output, so that nothing behind it can refer to
    /// the window.
    pub is_complete: bool,
}

/// `window` reduced to what decoding `following` from `start` refers to. `following` is the
/// compressed data from the first whole byte on.
///
/// # Errors
/// [`Corrupt`] where `following` is not deflate data.
pub fn sparse(window: &[u8], start: BitStart, following: &[u8]) -> Result<Reduced, Corrupt> {
    let offset = WINDOW - window.len();
    let (low, is_complete) = probe(window.len(), start, following, |i| (offset + i) as u8)?;
    let (high, _) = probe(window.len(), start, following, |i| {
        let position = offset + i;
        (position as u8).wrapping_add(1 + (position >> 8) as u8)
    })?;
    let mut kept = vec![0; window.len()];
    let mut first = window.len();
    for (&low, &high) in low.iter().zip(&high) {
        if low == high {
            continue;
        }
        let page = usize::from(high.wrapping_sub(low).wrapping_sub(1));
        let position = (page << 8) | usize::from(low);
        if let Some(i) = position.checked_sub(offset).filter(|&i| i < window.len()) {
            kept[i] = window[i];
            first = first.min(i);
        }
    }
    Ok(Reduced { window: kept.split_off(first), is_complete })
}

/// Decodes up to 32 KiB behind a made-up window; whether the data gave as much, or ended.
fn probe(
    length: usize,
    start: BitStart,
    following: &[u8],
    byte: impl Fn(usize) -> u8,
) -> Result<(Vec<u8>, bool), Corrupt> {
    let window: Vec<u8> = (0..length).map(byte).collect();
    let mut inflate = start.inflate(&window)?;
    let mut output = vec![0; WINDOW];
    let (mut read, mut written, mut ended) = (0, 0, false);
    while written < output.len() && !ended {
        let Step { consumed, produced, state } =
            inflate.step(&following[read..], &mut output[written..], Stop::Never)?;
        read += consumed;
        written += produced;
        ended = state == State::End;
        if consumed == 0 && produced == 0 {
            break;
        }
    }
    output.truncate(written);
    Ok((output, ended || written == WINDOW))
}

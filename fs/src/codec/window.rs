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

/// `window` with every byte zeroed that decoding `following` from `start` does not refer to, and
/// without what lies before the first byte referred to. Empty where nothing is referred to.
///
/// `following` is the compressed data from the first whole byte on, long enough for 32 KiB of
/// output or until the stream ends.
///
/// # Errors
/// [`Corrupt`] where `following` is not deflate data.
pub fn sparse(window: &[u8], start: BitStart, following: &[u8]) -> Result<Vec<u8>, Corrupt> {
    let offset = WINDOW - window.len();
    let low = probe(window.len(), start, following, |i| (offset + i) as u8)?;
    let high = probe(window.len(), start, following, |i| {
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
    Ok(kept.split_off(first))
}

/// Decodes up to 32 KiB behind a made-up window.
fn probe(
    length: usize,
    start: BitStart,
    following: &[u8],
    byte: impl Fn(usize) -> u8,
) -> Result<Vec<u8>, Corrupt> {
    let window: Vec<u8> = (0..length).map(byte).collect();
    let mut inflate = start.inflate(&window)?;
    let mut output = vec![0; WINDOW];
    let (mut read, mut written) = (0, 0);
    while written < output.len() {
        let Step { consumed, produced, state } =
            inflate.step(&following[read..], &mut output[written..], Stop::Never)?;
        read += consumed;
        written += produced;
        if state == State::End || (consumed == 0 && produced == 0) {
            break;
        }
    }
    output.truncate(written);
    Ok(output)
}

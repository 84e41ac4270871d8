//! A safe face for zlib's inflate: steps, block boundaries, dictionaries and partial bytes.
//!
//! `flate2` hides the three things that checkpoints need (stopping at block boundaries, bits
//! left over in the last byte, the sliding window), so this module talks to `libz-rs-sys`. All
//! unsafe code of the codecs is here.

use std::ffi::c_int;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_DATA_ERROR, Z_MEM_ERROR, Z_NEED_DICT, Z_NO_FLUSH, Z_OK, Z_STREAM_END,
    inflate, inflateEnd, inflateGetDictionary, inflateInit2_, inflatePrime, inflateReset,
    inflateSetDictionary, z_stream, zlibVersion,
};

/// The most that a deflate back-reference reaches back (RFC 1951, section 2).
pub const WINDOW: usize = 32 * 1024;

/// What the stream looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    /// A gzip member (RFC 1952): header, deflate data, checked trailer.
    Gzip,
    /// Bare deflate data (RFC 1951).
    Raw,
}

/// Where a step stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// When input or output runs out.
    Never,
    /// Also after each header and each deflate block.
    Block,
}

/// Where a step left the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Inside a block: more input or more room is needed.
    Inside,
    /// Between two blocks; the last `unused_bits` (0..=7) of the last consumed byte belong to
    /// the next one.
    Boundary {
        /// Bits of the last consumed byte that are not part of what was decoded.
        unused_bits: u8,
    },
    /// At the end of the stream, the trailer included where there is one.
    End,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes taken from the input.
    pub consumed: usize,
    /// Bytes written to the output.
    pub produced: usize,
    /// Where the stream is now.
    pub state: State,
}

/// Data that no deflate encoder writes, or a wrong checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("corrupt deflate data")]
pub struct Corrupt;

/// An inflate stream.
pub struct Inflate {
    // Boxed: the stream's state points back to it.
    stream: Box<z_stream>,
}

// SAFETY: the stream owns everything it points to; between calls the input and output pointers
// are not followed.
unsafe impl Send for Inflate {}

impl Inflate {
    /// A stream that expects `wrapper` from its first byte.
    pub fn new(wrapper: Wrapper) -> Self {
        let mut stream = Box::<z_stream>::default();
        let bits = match wrapper {
            Wrapper::Gzip => 15 + 16,
            Wrapper::Raw => -15,
        };
        let size = size_of::<z_stream>() as c_int;
        // SAFETY: a default stream is what inflateInit2 expects; version and size are this
        // library's own.
        let code = unsafe { inflateInit2_(&mut *stream, bits, zlibVersion(), size) };
        assert_eq!(code, Z_OK, "inflateInit2 fails only when memory runs out");
        Self { stream }
    }

    /// Starts again at the beginning of another stream of the same kind.
    pub fn reset(&mut self) {
        // SAFETY: the stream was initialised in `new`.
        let code = unsafe { inflateReset(&mut *self.stream) };
        assert_eq!(code, Z_OK, "an initialised stream can be reset");
    }

    /// Starts a raw stream in the middle: the upper `bits` (1..=7) of `byte` come first.
    pub fn prime(&mut self, byte: u8, bits: u8) {
        debug_assert!((1..8).contains(&bits));
        // SAFETY: the stream was initialised in `new`; the value has `bits` bits.
        let code = unsafe {
            inflatePrime(&mut *self.stream, c_int::from(bits), c_int::from(byte >> (8 - bits)))
        };
        assert_eq!(code, Z_OK, "up to 16 bits fit an empty bit buffer");
    }

    /// Gives a raw stream the output (at most [`WINDOW`] bytes) that precedes its start.
    ///
    /// # Errors
    /// [`Corrupt`] where `window` is longer than that.
    pub fn set_window(&mut self, window: &[u8]) -> Result<(), Corrupt> {
        if window.is_empty() {
            return Ok(());
        }
        if window.len() > WINDOW {
            return Err(Corrupt);
        }
        // SAFETY: the pointer and the length are those of one slice, which is only read.
        let code = unsafe {
            inflateSetDictionary(&mut *self.stream, window.as_ptr(), window.len() as u32)
        };
        if code == Z_OK { Ok(()) } else { Err(Corrupt) }
    }

    /// The last output of the stream, at most [`WINDOW`] bytes.
    pub fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut length = 0;
        // SAFETY: the buffer has the 32 KiB that inflateGetDictionary writes at most.
        let code = unsafe { inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut length) };
        assert_eq!(code, Z_OK, "an initialised stream has a window");
        window.truncate(length as usize);
        window
    }

    /// Decodes from `input` to `output` until one of them is used up, or a boundary is reached
    /// where `stop` says so.
    ///
    /// # Errors
    /// [`Corrupt`] data; the stream is of no use afterwards.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Result<Step, Corrupt> {
        let stream = &mut *self.stream;
        let room = u32::try_from(input.len()).unwrap_or(u32::MAX);
        let space = u32::try_from(output.len()).unwrap_or(u32::MAX);
        stream.next_in = input.as_ptr();
        stream.avail_in = room;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = space;
        let flush = match stop {
            Stop::Never => Z_NO_FLUSH,
            Stop::Block => Z_BLOCK,
        };
        // SAFETY: both pointers were just set from live slices of at least these lengths, and
        // nothing else holds `output`.
        let code = unsafe { inflate(stream, flush) };
        let consumed = (room - stream.avail_in) as usize;
        let produced = (space - stream.avail_out) as usize;
        let state = match code {
            Z_STREAM_END => State::End,
            Z_OK | Z_BUF_ERROR => boundary(stream.data_type),
            Z_DATA_ERROR | Z_NEED_DICT => return Err(Corrupt),
            Z_MEM_ERROR => panic!("out of memory while inflating"),
            _ => return Err(Corrupt),
        };
        Ok(Step { consumed, produced, state })
    }
}

/// zlib reports the position in `data_type`: bit 7 right after a header or a block, bit 6 inside
/// the last block, the low bits count the unused bits of the last byte.
fn boundary(data_type: c_int) -> State {
    let after_block = data_type & 128 != 0 && data_type & 64 == 0;
    if after_block { State::Boundary { unused_bits: (data_type & 7) as u8 } } else { State::Inside }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised in `new` and is not used again.
        unsafe { inflateEnd(&mut *self.stream) };
    }
}

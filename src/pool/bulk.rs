//! Many frames in one call: the slot is owned once for as many as it has, not once for each.

use super::{AllocError, FramePool, Request};
use crate::{
    frame::Frame,
    platform::Platform,
    raw::magazine::{FrameNumber, Kind},
    source::FrameSource,
};

/// Frames that move between the slot and the caller at a time, on the stack.
pub(super) const CHUNK: usize = 64;

impl<S: FrameSource, P: Platform> FramePool<S, P> {
    /// Fills `out` with frames from the front on and returns how many it got. Entries that still hold a frame give it back
    /// first.
    ///
    /// From any context; the bound is that of [`alloc`](Self::alloc) for each magazine, not for each frame.
    /// At most 11,800 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AllocError`] if there was not even one frame.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, Request};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let mut frames = [const { None }; 16];
    /// let got = pool.alloc_bulk(Request::ORDINARY, &mut frames)?;
    /// assert!(frames[..got].iter().all(Option::is_some));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_bulk<'p>(
        &'p self,
        request: Request,
        out: &mut [Option<Frame<'p, S, P>>],
    ) -> Result<usize, AllocError> {
        self.free_bulk(out);
        let mut filled = 0;
        while filled < out.len() {
            let rest = out.get_mut(filled..).unwrap_or_default();
            let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
            let wanted = chunk.get_mut(..rest.len().min(CHUNK)).unwrap_or_default();
            let got = match self.take_many(request, wanted) {
                Ok(got) => got,
                Err(error) if filled == 0 => return Err(error),
                Err(_) => return Ok(filled),
            };
            for (entry, &number) in rest.iter_mut().zip(chunk.iter().take(got)) {
                *entry = Some(Frame::new(self, number));
            }
            filled += got;
        }
        Ok(filled)
    }

    /// Fills all of `out`, or leaves it empty. Otherwise as [`alloc_bulk`](Self::alloc_bulk).
    /// At most 11,800 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    ///
    /// # Errors
    /// [`AllocError`] if there were fewer frames than entries; those that there were went back.
    ///
    /// ```
    /// # #[cfg(feature = "std")] {
    /// # use framepool::{AnonymousMemory, Builder, Request};
    /// # let pool = Builder::new(64).start(AnonymousMemory::new(64)?)?;
    /// let mut frames = [const { None }; 16];
    /// pool.alloc_bulk_exact(Request::ORDINARY, &mut frames)?;
    /// assert!(frames.iter().all(Option::is_some));
    /// pool.free_bulk(&mut frames);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_bulk_exact<'p>(
        &'p self,
        request: Request,
        out: &mut [Option<Frame<'p, S, P>>],
    ) -> Result<(), AllocError> {
        let filled = self.alloc_bulk(request, out)?;
        if filled == out.len() {
            return Ok(());
        }
        self.free_bulk(out);
        Err(self.reason(request))
    }

    /// Gives back every frame in `frames`, of this pool or another.
    ///
    /// From any context; never fails. The bound is that of a single free for each magazine, not for each frame.
    /// At most 1,600 instructions in every state that the sweeps try (`docs/design.md`, Bounds).
    pub fn free_bulk<'p>(&'p self, frames: &mut [Option<Frame<'p, S, P>>]) {
        self.free_bulk_of(Kind::Dirty, frames);
    }

    /// Gives back every frame in `frames`, as [`free_bulk`](Self::free_bulk), and promises that those of this pool are zero.
    ///
    /// # Safety
    /// As for [`Frame::free_zeroed`], for each of them.
    #[allow(unsafe_code, reason = "the promise is the caller's")]
    pub unsafe fn free_bulk_zeroed<'p>(&'p self, frames: &mut [Option<Frame<'p, S, P>>]) {
        self.free_bulk_of(Kind::Clean, frames);
    }

    fn free_bulk_of<'p>(&'p self, kind: Kind, frames: &mut [Option<Frame<'p, S, P>>]) {
        let mut chunk: [FrameNumber; CHUNK] = [0; CHUNK];
        for entries in frames.chunks_mut(CHUNK) {
            let mut length = 0;
            for entry in entries {
                let Some(frame) = entry.take_if(|frame| frame.is_of(self)) else {
                    *entry = None;
                    continue;
                };
                if let Some(place) = chunk.get_mut(length) {
                    *place = frame.into_number();
                    length += 1;
                }
            }
            self.give_many(kind, chunk.get(..length).unwrap_or_default());
        }
    }

    /// Takes at least one frame, and as many as this CPU's cache has at once, into the front of `frames`; how many.
    pub(super) fn take_many(
        &self,
        request: Request,
        frames: &mut [FrameNumber],
    ) -> Result<usize, AllocError> {
        let got = self.take_cached(request.kind(), frames);
        match frames.first_mut() {
            Some(first) if got == 0 => *first = self.take(request)?,
            _ => return Ok(got),
        }
        Ok(1)
    }

    /// Takes as many frames as this CPU's cache has at once into the front of `frames`; how many.
    pub(super) fn take_cached(&self, kind: Kind, frames: &mut [FrameNumber]) -> usize {
        let got = self.cache_of(kind).pop_many(&self.platform, frames);
        self.keep_if(frames.get_mut(..got).unwrap_or_default(), |frame| self.check_out(frame))
    }

    /// Brings the frames to the front that are sound, with the feature `hardened`; how many. The others are nobody's any more.
    #[inline(always)]
    pub(super) fn keep_if(
        &self,
        frames: &mut [FrameNumber],
        is_sound: impl Fn(FrameNumber) -> bool,
    ) -> usize {
        if !cfg!(feature = "hardened") {
            return frames.len();
        }
        let mut sound = 0;
        for place in 0..frames.len() {
            if frames.get(place).is_some_and(|&frame| is_sound(frame)) {
                frames.swap(sound, place);
                sound += 1;
            }
        }
        sound
    }

    /// Gives back frames, as many at a time as this CPU's cache has room for.
    pub(super) fn give_many(&self, kind: Kind, frames: &[FrameNumber]) {
        let put = if cfg!(feature = "hardened") {
            0
        } else {
            self.cache_of(kind).push_many(&self.platform, frames, &self.wanted)
        };
        for &frame in frames.iter().skip(put) {
            self.give(kind, frame);
        }
    }
}

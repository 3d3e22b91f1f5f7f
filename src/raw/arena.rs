//! Owns the bookkeeping memory of one pool: carved once at construction, never grown (R19).

use core::{alloc::Layout, fmt, mem::MaybeUninit, ops::Deref, ptr::NonNull};

/// A slice of the arena, initialised when it was carved and alive as long as the pool that carved it.
pub struct Carved<T> {
    start: NonNull<T>,
    length: usize,
}

// SAFETY: a `Carved` only ever gives out `&[T]`; sending or sharing it is sending or sharing `&[T]`, for which
// `T: Sync` is what is needed.
unsafe impl<T: Sync> Send for Carved<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Sync> Sync for Carved<T> {}

impl<T> Carved<T> {
    /// Where in this value the address of the first element is, in bytes: for assembly.
    #[allow(dead_code, reason = "for restartable sequences, where there are any")]
    pub const START: usize = core::mem::offset_of!(Self, start);

    /// A second handle on the same slice.
    pub fn share(&self) -> Self {
        Self { start: self.start, length: self.length }
    }
}

impl<T> Deref for Carved<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `Arena::carve` initialised `length` elements at `start`, nobody has a `&mut` to them, and the
        // pool drops its structures before its memory.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl<T> fmt::Debug for Carved<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "[_; {}]", self.length)
    }
}

/// Sums up what the structures of a pool will carve, in the order in which they will.
#[derive(Debug)]
pub struct Measure(Option<Layout>);

impl Measure {
    pub fn new() -> Self {
        Self(Some(Layout::new::<()>()))
    }

    /// Adds room for `count` values of `T`; none need no room, nor a place that is aligned.
    pub fn array<T>(self, count: usize) -> Self {
        if count == 0 {
            return self;
        }
        let extended =
            self.0.and_then(|layout| layout.extend(Layout::array::<T>(count).ok()?).ok().map(|(sum, _)| sum));
        Self(extended)
    }

    /// The sum, or nothing if it does not fit into the address space.
    pub fn finish(self) -> Option<Layout> {
        self.0
    }
}

/// Where a pool's bookkeeping memory came from, hence who gets it back.
#[derive(Debug)]
pub enum Memory {
    /// Given by the caller for ever.
    Given,
    /// From the heap, given back when the pool goes.
    #[cfg(feature = "alloc")]
    Heap(NonNull<u8>, Layout),
}

// SAFETY: the pointer is only ever used to give the block back, once, by the owner.
unsafe impl Send for Memory {}
// SAFETY: a shared `Memory` offers nothing.
unsafe impl Sync for Memory {}

#[cfg(feature = "alloc")]
impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Heap(start, layout) = *self {
            // SAFETY: `Arena::on_heap` allocated exactly this block with this layout, and the pool that carved it
            // is gone: its memory is its last field.
            unsafe { alloc::alloc::dealloc(start.as_ptr(), layout) }
        }
    }
}

/// The part of the bookkeeping memory that is not carved yet.
#[derive(Debug)]
pub struct Arena {
    cursor: NonNull<u8>,
    remaining: usize,
}

impl Arena {
    /// An arena over memory that the caller gives away for ever.
    pub fn given(memory: &'static mut [MaybeUninit<u8>]) -> (Self, Memory) {
        let remaining = memory.len();
        (Self { cursor: NonNull::from(memory).cast(), remaining }, Memory::Given)
    }

    /// An arena on the heap, or nothing when the heap has no room for it.
    #[cfg(feature = "alloc")]
    pub fn on_heap(layout: Layout) -> Option<(Self, Memory)> {
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc::alloc::alloc(layout) })?;
        Some((Self { cursor: start, remaining: layout.size() }, Memory::Heap(start, layout)))
    }

    /// Takes `count` values of `T` off the arena and initialises them; nothing when there is no room.
    pub fn carve<T>(&mut self, count: usize, mut value: impl FnMut(usize) -> T) -> Option<Carved<T>> {
        if count == 0 {
            return Some(Carved { start: NonNull::dangling(), length: 0 });
        }
        let padding = self.cursor.as_ptr().align_offset(align_of::<T>());
        let size = size_of::<T>().checked_mul(count)?;
        let taken = padding.checked_add(size)?;
        if taken > self.remaining {
            return None;
        }
        // SAFETY: `padding` and `taken` are within the memory that is left, checked above.
        let (start, cursor) = unsafe { (self.cursor.add(padding).cast::<T>(), self.cursor.add(taken)) };
        for index in 0..count {
            // SAFETY: `index < count` elements of `T` fit behind the aligned `start`, and nobody else has them.
            unsafe { start.add(index).write(value(index)) };
        }
        self.cursor = cursor;
        self.remaining -= taken;
        Some(Carved { start, length: count })
    }
}

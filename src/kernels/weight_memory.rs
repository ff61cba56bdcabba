//! The memory of packed weights: large mappings that the system is asked to back with huge pages.
//!
//! A step reads every weight once, so with ordinary pages it would miss the TLB for every page. The
//! weights of all layers are adjacent, because a single layer is often smaller than a huge page.
//! Memory is first touched by the thread that packs into it, and is kept as long as a layer uses
//! it.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

use super::huge_pages::{self, HUGE_PAGE};

/// 64 bytes, aligned like a cache line and a 512-bit register.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; 16]);

/// Minimum size of a mapping, in bytes; only pages that are written take memory.
const CHUNK: usize = 64 << 20;

/// Allocates memory for weights. Clones allocate from the same mapping.
#[derive(Clone, Default)]
pub struct WeightMemory(Arc<Mutex<Option<Chunk>>>);

struct Chunk {
    mapping: Arc<MmapMut>,
    start: NonNull<Line>,
    lines: usize,
    used: usize,
}

// SAFETY: the pointer points into the mapping, which may be used from any thread; every line is
// allocated once.
unsafe impl Send for Chunk {}

/// Allocated lines, zero until they are written.
pub(super) struct Lines {
    start: NonNull<Line>,
    count: usize,
    /// Keeps the memory mapped.
    _mapping: Arc<MmapMut>,
}

// SAFETY: `Lines` owns its lines, like a vector.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl WeightMemory {
    /// Allocates `count` lines, all zero.
    ///
    /// # Errors
    /// If the system can't map the memory.
    pub(super) fn lines(&self, count: usize) -> io::Result<Lines> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let chunk = match &mut *current {
            Some(chunk) if chunk.lines - chunk.used >= count => chunk,
            current => current.insert(Chunk::map(count)?),
        };
        // SAFETY: at least `count` lines are left after those in use.
        let start = unsafe { chunk.start.add(chunk.used) };
        chunk.used += count;
        Ok(Lines {
            start,
            count,
            _mapping: Arc::clone(&chunk.mapping),
        })
    }
}

impl Chunk {
    fn map(count: usize) -> io::Result<Self> {
        let bytes = (count * size_of::<Line>()).max(CHUNK);
        let mut mapping = MmapMut::map_anon(bytes + HUGE_PAGE)?;
        huge_pages::advise(mapping.as_mut_ptr(), mapping.len());
        let offset = mapping.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // SAFETY: the offset is within the mapping, and a huge page's start is aligned for lines.
        let start = unsafe { NonNull::new_unchecked(mapping.as_mut_ptr().add(offset)) };
        Ok(Self {
            mapping: Arc::new(mapping),
            start: start.cast(),
            lines: bytes / size_of::<Line>(),
            used: 0,
        })
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: this value owns the lines exclusively and keeps their mapping; any bits are a
        // valid line.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_zero_and_do_not_overlap() {
        let memory = WeightMemory::default();
        let sizes = [0, 1, 1000, CHUNK / size_of::<Line>(), 5];
        let mut parts: Vec<Lines> = sizes.map(|n| memory.lines(n).unwrap()).into();
        drop(memory);
        for (n, part) in parts.iter_mut().enumerate() {
            assert!(part.iter().all(|line| line.0 == [0; 16]));
            part.fill(Line([n as u32; 16]));
        }
        for ((n, part), size) in parts.iter().enumerate().zip(sizes) {
            assert_eq!(part.len(), size);
            assert!(part.iter().all(|line| line.0 == [n as u32; 16]));
        }
    }
}

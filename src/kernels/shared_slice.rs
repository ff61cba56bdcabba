//! A slice whose disjoint parts are written by the tasks of one [`Pool::run`](super::Pool::run).

use std::marker::PhantomData;

/// Hands out parts of a mutable slice to several threads.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: its parts are disjoint mutable slices, which other threads may use as `T: Send`.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    /// Borrows a slice while tasks write to it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            length: slice.len(),
            slice: PhantomData,
        }
    }

    /// Returns the slice's first element, for parts that are not contiguous; writes through it must
    /// follow the rules of [`part`](Self::part).
    pub fn as_mut_ptr(&self) -> *mut T {
        self.start
    }

    /// Returns the part of `length` elements from `start` on.
    ///
    /// # Safety
    /// Parts that are alive at the same time must not overlap.
    ///
    /// # Panics
    /// If the part is not within the slice.
    #[allow(clippy::mut_from_ref)] // the caller guarantees that parts are disjoint
    pub unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        let within = start
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        assert!(
            within,
            "part {start}+{length} of a slice of {}",
            self.length
        );
        // SAFETY: the part is within the slice, as just checked, and not aliased, as the caller
        // guarantees.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}

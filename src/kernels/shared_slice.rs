//! A slice that the tasks of one [`Pool::run`](super::Pool::run) write to in disjoint parts.

use std::marker::PhantomData;

/// Hands out parts of a mutable slice to several threads.
pub(crate) struct SharedSlice<'a, T> {
    start: *mut T,
    length: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice that is used in parts; `T: Send` lets those go to other threads.
unsafe impl<T: Send> Sync for SharedSlice<'_, T> {}

impl<'a, T> SharedSlice<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            length: slice.len(),
            slice: PhantomData,
        }
    }

    /// The part of `length` elements from `start` on.
    ///
    /// # Safety
    /// Parts that are alive at the same time must not overlap.
    ///
    /// # Panics
    /// If the part is not within the slice.
    #[allow(clippy::mut_from_ref)] // that is the point; disjointness is the caller's duty
    pub unsafe fn part(&self, start: usize, length: usize) -> &mut [T] {
        let within = start
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        assert!(
            within,
            "part {start}+{length} of a slice of {}",
            self.length
        );
        // SAFETY: within the slice, as just checked, and not aliased, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), length) }
    }
}

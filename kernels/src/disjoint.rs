//! Outputs of which threads write different parts that are not chunks.

use std::marker::PhantomData;

/// Values of which threads take disjoint parts.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    values: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice, whose parts are handed out under the condition that they are disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub fn new(values: &'a mut [T]) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), values: PhantomData }
    }

    /// The `len` values from `first` on.
    ///
    /// # Panics
    /// When there are not so many.
    ///
    /// # Safety
    /// No value is part of two slices at a time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, first: usize, len: usize) -> &'a mut [T] {
        assert!(first <= self.len && len <= self.len - first);
        // SAFETY: inside of the slice; the caller vouches that nobody else has these values.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}

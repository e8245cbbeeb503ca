//! Loops that the compiler vectorises, compiled for the best vectors that the running processor has.

use pulp::{Arch, NullaryFnOnce};

/// Calls `work`, compiled for the best vectors of the processor. The closure, and all that it calls, has to be `#[inline(always)]`.
///
/// A closure that only borrows what it captures is called by value through a function of its own, which [`pulp`] would leave
/// uninlined, and so without vectors; by reference it is called itself.
#[inline(always)]
pub fn vectorized<R>(work: impl FnMut() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnMut() -> R> NullaryFnOnce for Call<F> {
        type Output = R;

        #[inline(always)]
        fn call(mut self) -> R {
            (self.0)()
        }
    }
    Arch::new().dispatch(Call(work))
}

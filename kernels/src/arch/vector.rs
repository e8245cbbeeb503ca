//! The few vector operations that the kernels are written over.

/// A register of f32 lanes.
///
/// Implementations are `#[inline(always)]`, so that they compile to single instructions inside a
/// function with the right `#[target_feature]`.
pub trait Vector: Copy {
    /// Lanes of the register.
    const LANES: usize;

    /// All lanes zero.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn zero() -> Self;

    /// The [`Vector::LANES`] values from `from` on, at any alignment.
    ///
    /// # Safety
    /// The processor has the instruction set, and `from` is valid for reading that many f32.
    unsafe fn load(from: *const f32) -> Self;

    /// `self + a * b` in every lane.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;

    /// The sum of all lanes, in an order that depends on the instruction set alone.
    ///
    /// # Safety
    /// The processor has the instruction set.
    unsafe fn sum(self) -> f32;
}

//! Stand-in for Objective-C blocks: closures that a stand-in object may keep and call.

use std::{ffi::c_void, fmt, marker::PhantomData, ptr::NonNull, sync::Arc};

/// What a block may hold. It is called by nobody here; what matters is when it is dropped.
type Held = Arc<dyn std::any::Any>;

/// A block that takes and returns what `F` does.
pub struct DynBlock<F: ?Sized> {
    held: Held,
    kind: PhantomData<F>,
}

impl<F: ?Sized> DynBlock<F> {
    /// What the block keeps alive.
    pub fn held(&self) -> Held {
        self.held.clone()
    }
}

impl<F: ?Sized> fmt::Debug for DynBlock<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block")
    }
}

/// A block on the heap.
#[derive(Debug)]
pub struct RcBlock<F: ?Sized>(DynBlock<F>);

/// Closures that blocks are made of.
pub trait IntoBlock<F: ?Sized> {
    /// The closure, kept.
    fn keep(self) -> Held;
}

impl<A: 'static, C: Fn(A) + 'static> IntoBlock<dyn Fn(A)> for C {
    fn keep(self) -> Held {
        Arc::new(self)
    }
}

impl<C: Fn(NonNull<c_void>, usize) + 'static> IntoBlock<dyn Fn(NonNull<c_void>, usize)> for C {
    fn keep(self) -> Held {
        Arc::new(self)
    }
}

impl<F: ?Sized> RcBlock<F> {
    /// A block of a closure.
    pub fn new(closure: impl IntoBlock<F>) -> Self {
        Self(DynBlock { held: closure.keep(), kind: PhantomData })
    }

    /// The block, as functions of Objective-C take it.
    pub fn as_ptr(this: &Self) -> *mut DynBlock<F> {
        std::ptr::from_ref(&this.0).cast_mut()
    }
}

impl<F: ?Sized> std::ops::Deref for RcBlock<F> {
    type Target = DynBlock<F>;

    fn deref(&self) -> &DynBlock<F> {
        &self.0
    }
}

//! Stand-in for Objective-C's runtime: reference-counted objects of which only protocols are known.

/// Reference counting.
pub mod rc {
    use std::{
        hash::{Hash, Hasher},
        ops::Deref,
        sync::Arc,
    };

    /// A counted reference. Equal is what is the same object.
    #[derive(Debug)]
    pub struct Retained<T: ?Sized>(Arc<T>);

    impl<T> Retained<T> {
        /// The only reference to a new object.
        pub fn stand_in(object: T) -> Self {
            Self(Arc::new(object))
        }
    }

    impl<T: ?Sized> Retained<T> {
        /// The object's address.
        pub fn as_ptr(this: &Self) -> *const T {
            Arc::as_ptr(&this.0)
        }
    }

    impl<T: ?Sized> Clone for Retained<T> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    impl<T: ?Sized> Deref for Retained<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }

    impl<T: ?Sized> PartialEq for Retained<T> {
        fn eq(&self, other: &Self) -> bool {
            Arc::ptr_eq(&self.0, &other.0)
        }
    }

    impl<T: ?Sized> Hash for Retained<T> {
        fn hash<H: Hasher>(&self, state: &mut H) {
            Arc::as_ptr(&self.0).cast::<()>().hash(state);
        }
    }
}

/// Objects.
pub mod runtime {
    use crate::rc::Retained;
    use std::{any::Any, fmt, marker::PhantomData};

    /// An object of which nothing is known.
    #[derive(Debug)]
    pub struct AnyObject;

    /// An object that follows a protocol.
    #[repr(C)]
    pub struct ProtocolObject<P: ?Sized> {
        object: Box<dyn Any + Send + Sync>,
        protocol: PhantomData<fn(&P)>,
    }

    impl<P: ?Sized> ProtocolObject<P> {
        /// An object that is a `T` behind its protocol.
        pub fn stand_in<T: Any + Send + Sync>(object: T) -> Retained<Self> {
            Retained::stand_in(Self { object: Box::new(object), protocol: PhantomData })
        }

        /// What is behind the protocol.
        ///
        /// # Panics
        /// When it is something else.
        pub fn object<T: Any>(&self) -> &T {
            self.object.downcast_ref().expect("an object of this stand-in")
        }

        /// The object under another protocol that it follows, too.
        pub fn from_ref<Q: ?Sized>(other: &ProtocolObject<Q>) -> &Self {
            // SAFETY: the protocol is a marker of no size; the layouts are the same.
            unsafe { &*std::ptr::from_ref(other).cast() }
        }
    }

    impl<P: ?Sized> fmt::Debug for ProtocolObject<P> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(std::any::type_name::<P>())
        }
    }
}

/// Every version of the system is available.
#[macro_export]
macro_rules! available {
    ($($version:tt)*) => {
        true
    };
}

/// Messages, which are sent only to ask whether a property is there.
#[macro_export]
macro_rules! msg_send {
    ($($message:tt)*) => {
        ::std::ptr::dangling::<$crate::runtime::AnyObject>()
    };
}

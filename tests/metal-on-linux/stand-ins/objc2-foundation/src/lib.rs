//! Stand-in for Apple's Foundation: what Candle's Metal backend names of it.
#![allow(non_snake_case)]

use objc2::rc::Retained;
use std::{
    ffi::{CString, c_char},
    fmt,
    path::Path,
};

/// A part of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NSRange {
    /// The first byte.
    pub location: usize,
    /// So many bytes.
    pub length: usize,
}

impl NSRange {
    /// The bytes from `location` on.
    pub fn new(location: usize, length: usize) -> Self {
        Self { location, length }
    }
}

/// A string.
#[derive(Debug)]
pub struct NSString(CString);

impl NSString {
    /// A copy of a string without zeros.
    #[allow(clippy::should_implement_trait)]
    pub fn from_str(text: &str) -> Retained<Self> {
        Retained::stand_in(Self(CString::new(text).expect("a string without zeros")))
    }

    /// The string in C's form.
    pub fn UTF8String(&self) -> *const c_char {
        self.0.as_ptr()
    }
}

impl fmt::Display for NSString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string_lossy())
    }
}

/// An error.
#[derive(Debug)]
pub struct NSError(String);

impl NSError {
    /// With this description.
    pub fn stand_in(description: String) -> Retained<Self> {
        Retained::stand_in(Self(description))
    }

    /// The description.
    pub fn localizedDescription(&self) -> Retained<NSString> {
        NSString::from_str(&self.0)
    }
}

impl fmt::Display for NSError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The address of a file.
#[derive(Debug)]
pub struct NSURL;

impl NSURL {
    /// Of this file.
    pub fn from_file_path(_: impl AsRef<Path>) -> Option<Retained<Self>> {
        None
    }
}

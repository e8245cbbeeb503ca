//! A codec for keys and one for values.

use super::Codec;
use crate::{Error, Result};
use std::{fmt, str::FromStr};

/// How keys and values are stored. Keys usually need more bits than values: their errors pass through the softmax.
///
/// By name: `f32`, `f16`, or `kXvY` with the bits of keys and values (32, 16, 8, 4, 2), such as `k8v4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Of keys.
    pub keys: Codec,
    /// Of values.
    pub values: Codec,
}

impl Mode {
    /// As computed.
    pub const F32: Self = Self::new(Codec::F32, Codec::F32);
    /// Half precision: what nothing is lost by.
    pub const F16: Self = Self::new(Codec::F16, Codec::F16);
    /// Eight bits each.
    pub const K8V8: Self = Self::new(Codec::Int8, Codec::Int8);
    /// Eight bits for keys, four for values.
    pub const K8V4: Self = Self::new(Codec::Int8, Codec::Int4);

    /// The modes that were measured, from most bits to fewest. Others can be named as well.
    pub const NAMED: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::K8V8,
        Self::K8V4,
        Self::new(Codec::Int4, Codec::Int4),
        Self::new(Codec::Int8, Codec::Int2),
        Self::new(Codec::Int4, Codec::Int2),
        Self::new(Codec::Int2, Codec::Int2),
    ];

    /// Of these codecs.
    pub const fn new(keys: Codec, values: Codec) -> Self {
        Self { keys, values }
    }

    /// Whether any vectors are packed.
    pub const fn is_packed(self) -> bool {
        self.keys.is_packed() || self.values.is_packed()
    }

    /// How positions are stored that are not packed (yet).
    pub const fn exact(self) -> Codec {
        match (self.keys, self.values) {
            (Codec::F32, _) | (_, Codec::F32) => Codec::F32,
            _ => Codec::F16,
        }
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::F16
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::F32 => f.pad("f32"),
            Self::F16 => f.pad("f16"),
            Self { keys, values } => f.pad(&format!("k{}v{}", keys.bits(), values.bits())),
        }
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let codec = |bits: &str| Codec::ALL.into_iter().find(|codec| codec.bits().to_string() == bits);
        let mode = match name {
            "f32" => Some(Self::F32),
            "f16" => Some(Self::F16),
            _ => name.strip_prefix('k').and_then(|bits| bits.split_once('v')).and_then(|(keys, values)| {
                let mode = Self { keys: codec(keys)?, values: codec(values)? };
                // Nothing that is packed stands beside f32.
                (mode.exact() == Codec::F16 || !mode.is_packed()).then_some(mode)
            }),
        };
        mode.ok_or_else(|| Error::KvMode(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for mode in Mode::NAMED {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!("k8v4".parse(), Ok(Mode::K8V4));
        assert_eq!("k16v16".parse(), Ok(Mode::F16));
        for wrong in ["", "k8", "v4", "k8v3", "k32v4", "k8v4 ", "K8V4", "k+8v4"] {
            let error = wrong.parse::<Mode>().unwrap_err().to_string();
            assert!(error.contains("k8v4"), "{error}");
        }
    }
}

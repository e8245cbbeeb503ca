//! Sixty-four positions of one layer, laid out as attention reads them.
//!
//! Both products of attention then are sums of *units*, runs of 64 numbers side by side, times one number each:
//!
//! ```text
//! scores[0..64] = sum over d of q[d] * K[d][0..64]            a unit holds one channel of 64 positions
//! mix[64 u ..]  = sum over j of p[j] * V[u][j][0..64]         a unit holds 64 channels of one position
//! ```
//!
//! so that nothing is ever added up across a register, and one unit decoded serves all query heads that share it.

use super::Codec;
use crate::{arch::page::PageKernels, scheme::UNIT};
use half::f16;
use rayon::prelude::*;

/// Positions of a page.
pub const PAGE: usize = UNIT;

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Keys: the units of a head are its channels.
    Keys,
    /// Values: the units of a head are 64 channels of each position in turn, then the next 64 channels.
    Values,
}

impl Side {
    /// Units of a head.
    pub fn units(self, head_dim: usize) -> usize {
        match self {
            Self::Keys => head_dim,
            Self::Values => head_dim.div_ceil(UNIT) * PAGE,
        }
    }

    /// The unit and the place in it of a position's channel.
    fn place(self, position: usize, channel: usize) -> (usize, usize) {
        match self {
            Self::Keys => (channel, position),
            Self::Values => (channel / UNIT * PAGE + position, channel % UNIT),
        }
    }
}

/// Keys or values of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    side: Side,
    codec: Codec,
    head_dim: usize,
    /// `[kv_heads, units, unit bytes]`.
    units: Vec<u8>,
    /// `[kv_heads, 64]`, of packed codecs.
    scales: Vec<f16>,
}

impl Store {
    /// Zeros.
    pub fn new(side: Side, codec: Codec, kv_heads: usize, head_dim: usize) -> Self {
        let units = vec![0; kv_heads * side.units(head_dim) * codec.unit_bytes()];
        let scales = if codec.is_packed() { vec![f16::ZERO; kv_heads * PAGE] } else { Vec::new() };
        Self { side, codec, head_dim, units, scales }
    }

    /// Bytes that [`Store::new`] allocates.
    pub fn size(side: Side, codec: Codec, kv_heads: usize, head_dim: usize) -> usize {
        let scales = if codec.is_packed() { size_of::<f16>() * PAGE } else { 0 };
        kv_heads * (side.units(head_dim) * codec.unit_bytes() + scales)
    }

    /// One that was written down before; `None` where the lengths do not fit.
    pub fn from_parts(mut self, units: &[u8], scales: &[u8]) -> Option<Self> {
        if units.len() != self.units.len() || scales.len() != 2 * self.scales.len() {
            return None;
        }
        self.units.copy_from_slice(units);
        let bits = scales.as_chunks::<2>().0;
        self.scales.iter_mut().zip(bits).for_each(|(scale, bits)| *scale = f16::from_le_bytes(*bits));
        Some(self)
    }

    /// How it is stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// All units, and all scales.
    pub fn parts(&self) -> (&[u8], &[f16]) {
        (&self.units, &self.scales)
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.units.capacity() + size_of::<f16>() * self.scales.capacity()
    }

    /// The units of a head.
    pub fn units(&self, head: usize) -> &[u8] {
        let bytes = self.side.units(self.head_dim) * self.codec.unit_bytes();
        &self.units[head * bytes..][..bytes]
    }

    /// The scales of a head's positions; `None` where they are 1.
    pub fn scales(&self, head: usize) -> Option<&[f16; PAGE]> {
        self.scales.as_chunks().0.get(head)
    }

    /// A number: the reference reading.
    pub fn value(&self, head: usize, position: usize, channel: usize) -> f32 {
        let (unit, place) = self.side.place(position, channel);
        let bytes = self.codec.unit_bytes();
        let scale = self.scales(head).map_or(1.0, |scales| scales[position].to_f32());
        scale * self.codec.level(&self.units(head)[unit * bytes..][..bytes], place)
    }

    /// Writes a position's vector of one head, into a store that is not packed.
    pub(super) fn write(&mut self, head: usize, position: usize, x: &[f32]) {
        debug_assert!(!self.codec.is_packed() && x.len() == self.head_dim);
        let first = head * self.side.units(self.head_dim);
        for (channel, x) in x.iter().enumerate() {
            let (unit, place) = self.side.place(position, channel);
            let at = (first + unit) * UNIT + place;
            match self.codec {
                Codec::F32 => self.units[4 * at..][..4].copy_from_slice(&x.to_le_bytes()),
                _ => self.units[2 * at..][..2].copy_from_slice(&f16::from_f32(*x).to_le_bytes()),
            }
        }
    }

    /// This page in fewer bits.
    pub(super) fn packed(&self, codec: Codec, kernels: PageKernels) -> Self {
        let (side, head_dim) = (self.side, self.head_dim);
        let count = side.units(head_dim);
        let kv_heads = self.units.len() / (count * self.codec.unit_bytes());
        let mut packed = Self::new(side, codec, kv_heads, head_dim);
        let heads = packed.units.par_chunks_mut(count * codec.unit_bytes());
        heads.zip(packed.scales.par_chunks_mut(PAGE)).enumerate().for_each(|(head, (units, scales))| {
            let mut values = vec![0.0; count * UNIT];
            (kernels.decode)(self.codec, self.units(head), &mut values, UNIT);
            let (mut x, mut codes) = (vec![0.0; head_dim], vec![0; head_dim]);
            let mut all = vec![[0; UNIT]; count];
            for (position, scale) in scales.iter_mut().enumerate() {
                for (channel, x) in x.iter_mut().enumerate() {
                    let (unit, place) = side.place(position, channel);
                    *x = values[unit * UNIT + place];
                }
                *scale = codec.encode(&x, &mut codes);
                for (channel, code) in codes.iter().enumerate() {
                    let (unit, place) = side.place(position, channel);
                    all[unit][place] = *code;
                }
            }
            for (codes, unit) in all.iter().zip(units.chunks_exact_mut(codec.unit_bytes())) {
                codec.pack(codes, unit);
            }
        });
        packed
    }
}

/// Keys or values of a page, as they came and packed. There may be both: a page that some queries see as recent and others do
/// not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Half {
    /// In f16 or f32.
    pub exact: Option<Store>,
    /// In fewer bits.
    pub packed: Option<Store>,
}

impl Half {
    /// What a query sees to which the page is recent, or is not.
    pub fn seen(&self, recent: bool) -> Option<&Store> {
        if recent { self.exact.as_ref() } else { self.packed.as_ref().or(self.exact.as_ref()) }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.exact.iter().chain(&self.packed).map(Store::bytes).sum()
    }
}

/// A page.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// Its keys.
    pub keys: Half,
    /// Its values.
    pub values: Half,
}

impl Page {
    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.keys.bytes() + self.values.bytes()
    }
}

//! Units of 64 codes: how 2-, 3- and 4-bit codes lie in bytes.
//!
//! A unit's codes are interleaved so that one mask and one shift of a whole vector register yield
//! *consecutive* codes, with no shuffle across lanes.

/// Codes in a unit.
pub const UNIT: usize = 64;

/// 64 codes of [`CodeUnit::BITS`] bits in [`CodeUnit::BYTES`] bytes.
pub trait CodeUnit: Send + Sync + std::fmt::Debug + 'static {
    /// Bits of a code.
    const BITS: usize;
    /// Bytes of a unit.
    const BYTES: usize = Self::BITS * UNIT / 8;

    /// The `i`-th code: the reference reading.
    fn code(unit: &[u8], i: usize) -> u8;

    /// Packs 64 codes, each below `1 << BITS`, into `out` of [`CodeUnit::BYTES`] bytes.
    fn pack(codes: &[u8; UNIT], out: &mut [u8]);

    /// Packs the codes of a row, a multiple of 64, unit by unit.
    fn pack_row(codes: &[u8], out: &mut [u8]) {
        for (codes, out) in codes.as_chunks::<UNIT>().0.iter().zip(out.chunks_exact_mut(Self::BYTES)) {
            Self::pack(codes, out);
        }
    }

    /// Unpacks a unit of [`CodeUnit::BYTES`] bytes.
    fn unpack(unit: &[u8], codes: &mut [u8; UNIT]);
}

/// Bits `2m` and `2m + 1` of byte `j` (of 16) hold code `16 m + j`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Unit2([u8; 16]);

/// A [`Unit2`] of the codes' two low bits, then a little-endian `u64` whose bit `i` is code `i`'s high bit
/// (an AVX-512 mask register as it stands).
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Unit3 {
    low: Unit2,
    high: [u8; 8],
}

/// The low nibble of byte `j` (of 32) holds code `j`, the high nibble code `32 + j`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Unit4([u8; 32]);

const _: () = assert!(size_of::<Unit2>() == Unit2::BYTES && Unit2::BYTES == 16);
const _: () = assert!(size_of::<Unit3>() == Unit3::BYTES && Unit3::BYTES == 24);
const _: () = assert!(size_of::<Unit4>() == Unit4::BYTES && Unit4::BYTES == 32);

/// A unit's bytes as an array; schemes hand over slices of exactly this length.
#[inline(always)]
fn array<const N: usize>(unit: &[u8]) -> &[u8; N] {
    unit.first_chunk().expect("a unit's slice has the unit's length")
}

impl CodeUnit for Unit2 {
    const BITS: usize = 2;

    fn code(unit: &[u8], i: usize) -> u8 {
        (unit[i % 16] >> (2 * (i / 16))) & 3
    }

    fn pack(codes: &[u8; UNIT], out: &mut [u8]) {
        for (j, byte) in out.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |byte, m| byte | codes[16 * m + j] << (2 * m));
        }
    }

    #[inline(always)]
    fn unpack(unit: &[u8], codes: &mut [u8; UNIT]) {
        let unit = array::<16>(unit);
        for (m, quarter) in codes.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            for (code, &byte) in quarter.iter_mut().zip(unit) {
                *code = (byte >> (2 * m)) & 3;
            }
        }
    }
}

impl CodeUnit for Unit3 {
    const BITS: usize = 3;

    fn code(unit: &[u8], i: usize) -> u8 {
        let high = (unit[16 + i / 8] >> (i % 8)) & 1;
        Unit2::code(&unit[..16], i) | high << 2
    }

    fn pack(codes: &[u8; UNIT], out: &mut [u8]) {
        Unit2::pack(&codes.map(|c| c & 3), &mut out[..16]);
        let high = (0..UNIT).fold(0u64, |word, i| word | u64::from(codes[i] >> 2) << i);
        out[16..24].copy_from_slice(&high.to_le_bytes());
    }

    #[inline(always)]
    fn unpack(unit: &[u8], codes: &mut [u8; UNIT]) {
        let unit = array::<24>(unit);
        Unit2::unpack(&unit[..16], codes);
        for (eight, &high) in codes.as_chunks_mut::<8>().0.iter_mut().zip(&unit[16..]) {
            *eight = (u64::from_le_bytes(*eight) | spread(high)).to_le_bytes();
        }
    }
}

/// A word whose byte `i` is 4 where bit `i` is set, else 0.
#[inline(always)]
fn spread(bits: u8) -> u64 {
    // Byte i keeps bit i alone; adding 0x7f moves any such bit into bit 7, without a carry.
    let alone = (u64::from(bits) * 0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    ((alone + 0x7f7f_7f7f_7f7f_7f7f) >> 5) & 0x0404_0404_0404_0404
}

impl CodeUnit for Unit4 {
    const BITS: usize = 4;

    fn code(unit: &[u8], i: usize) -> u8 {
        (unit[i % 32] >> (4 * (i / 32))) & 15
    }

    fn pack(codes: &[u8; UNIT], out: &mut [u8]) {
        for (j, byte) in out.iter_mut().enumerate() {
            *byte = codes[j] | codes[32 + j] << 4;
        }
    }

    #[inline(always)]
    fn unpack(unit: &[u8], codes: &mut [u8; UNIT]) {
        let unit = array::<32>(unit);
        let (low, high) = codes.split_at_mut(32);
        for ((low, high), &byte) in low.iter_mut().zip(high).zip(unit) {
            *low = byte & 15;
            *high = byte >> 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip<U: CodeUnit>(bytes: &[u8]) {
        let mut codes = [0; UNIT];
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = byte & ((1 << U::BITS) - 1);
        }
        let (mut packed, mut unpacked) = (vec![0; U::BYTES], [0; UNIT]);
        U::pack(&codes, &mut packed);
        U::unpack(&packed, &mut unpacked);
        assert_eq!(unpacked, codes);
        assert_eq!(std::array::from_fn(|i| U::code(&packed, i)), codes);
    }

    proptest! {
        #[test]
        fn pack_unpack_and_reference_agree(bytes in prop::collection::vec(any::<u8>(), UNIT)) {
            round_trip::<Unit2>(&bytes);
            round_trip::<Unit3>(&bytes);
            round_trip::<Unit4>(&bytes);
        }
    }

    /// The vectors of docs/format.md: code `i` is `i` modulo the number of codes.
    #[test]
    fn test_vectors_of_the_specification() {
        let counting = |modulus: usize| std::array::from_fn(|i| (i % modulus) as u8);
        let mut out = [0; 32];
        Unit2::pack(&counting(4), &mut out[..16]);
        assert_eq!(out[..4], [0x00, 0x55, 0xaa, 0xff]);
        Unit3::pack(&counting(8), &mut out[..24]);
        assert_eq!(out[..8], [0x00, 0x55, 0xaa, 0xff, 0x00, 0x55, 0xaa, 0xff]);
        assert_eq!(out[16..24], [0xf0; 8]);
        Unit4::pack(&counting(16), &mut out);
        assert_eq!(out[..4], [0x00, 0x11, 0x22, 0x33]);
        assert_eq!(out[15..18], [0xff, 0x00, 0x11]);
    }
}

//! The level of each window of twelve bits.

/// Levels made of two tables of 16, looked up by the lowest and by the highest four bits of a window:
///
/// ```text
/// level[w] = low[w mod 16] ^ high[w div 256]                 with two bits a weight: exclusive or of bytes
/// level[w] = low[w mod 16] + high[w div 256] modulo 256      with more               (two's complement)
/// ```
///
/// Processors whose look-up in registers knows 16 entries at a time (AVX2; NEON, whose larger ones are as many operations) need three
/// instructions for that, and 20 and more for one table of 256. The four bits between are looked at by neighbours only: they
/// lengthen the memory of the trellis, and cost no instruction. What that is worth stands in docs/measurements.md; which of the two
/// operations loses less was found by training both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codebook {
    low: [i8; 16],
    high: [i8; 16],
    levels: [i8; 256],
}

impl Codebook {
    /// The codebook of a code of `bits` bits a weight.
    ///
    /// # Panics
    /// When a level is -128, whose sign cannot be changed in a byte.
    pub const fn new(bits: usize, low: [i8; 16], high: [i8; 16]) -> Self {
        match Self::try_new(bits, low, high) {
            Some(codebook) => codebook,
            None => panic!("no level is -128"),
        }
    }

    /// As [`Codebook::new`], or nothing when a level is -128.
    pub const fn try_new(bits: usize, low: [i8; 16], high: [i8; 16]) -> Option<Self> {
        let mut levels = [0; 256];
        let mut pair = 0;
        while pair < 256 {
            let (low, high) = (low[pair % 16], high[pair / 16]);
            levels[pair] = if bits == 2 { low ^ high } else { low.wrapping_add(high) };
            if levels[pair] == i8::MIN {
                return None;
            }
            pair += 1;
        }
        Some(Self { low, high, levels })
    }

    /// What the lowest four bits of a window contribute.
    pub const fn low(&self) -> &[i8; 16] {
        &self.low
    }

    /// What the highest four bits of a window contribute.
    pub const fn high(&self) -> &[i8; 16] {
        &self.high
    }

    /// The level of each pair of four bits that a window is looked up by, see [`pair`].
    pub const fn levels(&self) -> &[i8; 256] {
        &self.levels
    }

    /// The level of a window.
    #[inline]
    pub const fn level(&self, window: u16) -> i8 {
        self.levels[pair(window) as usize]
    }

    /// A codebook from any bytes.
    #[cfg(test)]
    pub(crate) fn any(bits: usize, low: [i8; 16], high: [i8; 16]) -> Self {
        // An odd and an even number make no even one.
        Self::new(bits, low.map(|level| level | 1), high.map(|level| level & !1))
    }
}

/// The bits of a window that it is looked up by, in a byte: the lowest four, and above them the highest four.
#[inline]
pub const fn pair(window: u16) -> u8 {
    (window & 0x0f | window >> 4 & 0xf0) as u8
}

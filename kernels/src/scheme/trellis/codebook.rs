//! The level of each window of eight bits.

/// 256 levels, made of two tables of 16:
///
/// ```text
/// level[w] = low[w mod 16] ^ high[w div 16]                  with two bits a weight: exclusive or of bytes
/// level[w] = low[w mod 16] + high[w div 16] modulo 256       with more                (two's complement)
/// ```
///
/// Processors whose look-up in registers knows 16 entries at a time (AVX2; NEON, whose larger ones are as many operations) need 20 instructions and more
/// for one of 256, and three for these. What that costs in decibels stands in docs/measurements.md; which of the two operations loses less was found by training both.
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
        let mut window = 0;
        while window < 256 {
            let (low, high) = (low[window % 16], high[window / 16]);
            levels[window] = if bits == 2 { low ^ high } else { low.wrapping_add(high) };
            if levels[window] == i8::MIN {
                return None;
            }
            window += 1;
        }
        Some(Self { low, high, levels })
    }

    /// What the lower half of a window contributes.
    pub const fn low(&self) -> &[i8; 16] {
        &self.low
    }

    /// What the upper half of a window contributes.
    pub const fn high(&self) -> &[i8; 16] {
        &self.high
    }

    /// The level of each window.
    pub const fn levels(&self) -> &[i8; 256] {
        &self.levels
    }

    /// A codebook from any bytes.
    #[cfg(test)]
    pub(crate) fn any(bits: usize, low: [i8; 16], high: [i8; 16]) -> Self {
        // An odd and an even number make no even one.
        Self::new(bits, low.map(|level| level | 1), high.map(|level| level & !1))
    }
}

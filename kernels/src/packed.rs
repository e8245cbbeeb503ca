//! A matrix in some scheme, over shared bytes.

use crate::{
    Error, Result,
    scheme::{PANEL_COLS, PANEL_ROWS, Part, Scheme},
};
use bytes::Bytes;
use half::f16;

/// Rows, columns or groups above this are refused before any arithmetic on them: no product of three
/// can overflow, and no real matrix comes near.
const LARGEST: usize = 1 << 31;

/// A matrix `[rows, cols]` in a [`Scheme`]. Its bytes are shared, and usually memory-mapped.
///
/// The lengths of all parts are checked once, in [`Packed::new`]; every code is a valid code. So
/// decoding cannot go out of bounds, whatever the bytes are.
#[derive(Debug, Clone)]
pub struct Packed {
    scheme: &'static dyn Scheme,
    rows: usize,
    cols: usize,
    group: usize,
    parts: Vec<Bytes>,
    /// Bytes of a row of each part.
    strides: Vec<usize>,
    #[cfg(feature = "metal")]
    residence: crate::metal::memory::Residence,
}

impl Packed {
    /// The parts that a matrix of this shape is stored in.
    ///
    /// # Errors
    /// [`Error::Shape`] where the scheme cannot store it.
    pub fn layout(scheme: &dyn Scheme, rows: usize, cols: usize, group: usize) -> Result<Vec<Part>> {
        let refuse = |reason| Error::Shape { scheme: scheme.name(), rows, cols, group, reason };
        if rows == 0 || cols == 0 || group == 0 {
            return Err(refuse("no dimension may be zero"));
        }
        if rows >= LARGEST || cols >= LARGEST || group >= LARGEST || rows.checked_mul(cols * 4).is_none() {
            return Err(refuse("a dimension is absurdly large"));
        }
        match scheme.refuse(rows, cols, group) {
            Some(reason) => Err(refuse(reason)),
            None => Ok(scheme.parts(rows, cols, group)),
        }
    }

    /// A matrix over the bytes of its parts, in the order of [`Packed::layout`].
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::PartCount`] or [`Error::PartLength`].
    pub fn new(
        scheme: &'static dyn Scheme,
        rows: usize,
        cols: usize,
        group: usize,
        parts: Vec<Bytes>,
    ) -> Result<Self> {
        let layout = Self::layout(scheme, rows, cols, group)?;
        if layout.len() != parts.len() {
            let (expected, found) = (layout.len(), parts.len());
            return Err(Error::PartCount { scheme: scheme.name(), expected, found });
        }
        for (part, bytes) in layout.iter().zip(&parts) {
            if part.bytes() != bytes.len() {
                let (expected, found) = (part.bytes(), bytes.len());
                return Err(Error::PartLength { part: part.suffix, expected, found });
            }
        }
        let strides = layout.iter().map(Part::row_bytes).collect();
        Ok(Self {
            scheme,
            rows,
            cols,
            group,
            parts,
            strides,
            #[cfg(feature = "metal")]
            residence: Default::default(),
        })
    }

    /// The scheme.
    pub fn scheme(&self) -> &'static dyn Scheme {
        self.scheme
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Weights of one row that share a scale.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// The parts as a device sees them.
    #[cfg(feature = "metal")]
    pub(crate) fn resident(
        &self,
        device: &candle_core::MetalDevice,
    ) -> candle_core::Result<std::sync::Arc<crate::metal::memory::Resident>> {
        self.residence.on(device, &self.parts.iter().collect::<Vec<_>>())
    }

    /// The bytes of one row of a part.
    #[inline(always)]
    pub fn row(&self, part: usize, row: usize) -> &[u8] {
        let stride = self.strides[part];
        &self.parts[part][row * stride..][..stride]
    }

    /// The bytes of some rows of a part.
    pub(crate) fn some_rows(&self, part: usize, rows: std::ops::Range<usize>) -> &[u8] {
        let stride = self.strides[part];
        &self.parts[part][rows.start * stride..rows.end * stride]
    }

    /// The `index`-th f16 of one row of a part.
    #[inline(always)]
    pub fn f16(&self, part: usize, row: usize, index: usize) -> f32 {
        let bytes = self.row(part, row);
        f16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
    }

    /// The value of one weight, by the scheme's scalar reference.
    pub fn weight(&self, row: usize, col: usize) -> f32 {
        self.scheme.weight(self, row, col)
    }

    /// The whole matrix, row-major, by the scheme's scalar reference: for tests and tools.
    pub fn dequant(&self) -> Vec<f32> {
        (0..self.rows).flat_map(|r| (0..self.cols).map(move |c| self.weight(r, c))).collect()
    }

    /// One row, by the fast path, into `out` of `cols` values.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        for (i, out) in out.chunks_mut(PANEL_COLS).enumerate() {
            let cols = i * PANEL_COLS..i * PANEL_COLS + out.len();
            self.scheme.decode_panel(self, row..row + 1, cols, out);
        }
    }

    /// Calls `visit(first column, panel)` for every panel of at most [`PANEL_ROWS`] rows from `row` on.
    ///
    /// The panel's rows lie [`PANEL_COLS`] apart.
    pub(crate) fn for_each_panel(&self, row: usize, mut visit: impl FnMut(std::ops::Range<usize>, &[f32])) {
        let mut panel = [0.0; PANEL_ROWS * PANEL_COLS];
        let rows = row..(row + PANEL_ROWS).min(self.rows);
        for start in (0..self.cols).step_by(PANEL_COLS) {
            let cols = start..(start + PANEL_COLS).min(self.cols);
            self.scheme.decode_panel(self, rows.clone(), cols.clone(), &mut panel);
            visit(cols, &panel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheme;
    use proptest::prelude::*;

    /// A matrix of arbitrary bytes: every bit pattern is a valid matrix.
    fn arbitrary(scheme: &'static dyn Scheme, rows: usize, cols: usize, group: usize, seed: u64) -> Packed {
        let layout = Packed::layout(scheme, rows, cols, group).unwrap();
        let mut state = seed;
        let parts = layout
            .iter()
            .map(|part| {
                (0..part.bytes())
                    .map(|_| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        (state >> 56) as u8
                    })
                    .collect::<Vec<u8>>()
                    .into()
            })
            .collect();
        Packed::new(scheme, rows, cols, group, parts).unwrap()
    }

    /// A matrix of arbitrary bytes in some scheme: of whole tiles where the scheme has them, else of whole units.
    fn any_matrix() -> impl Strategy<Value = Packed> {
        let shape = (0..scheme::ALL.len(), 1..40usize, 1..48usize, any::<u64>(), any::<bool>());
        shape.prop_map(|(s, rows, tiles, seed, wide)| {
            let scheme = scheme::ALL[s];
            let fits = |cols, group| Packed::layout(scheme, rows, cols, group).is_ok();
            let cols = if fits(16, 16) { tiles * 16 } else { tiles.div_ceil(4) * 64 };
            let group = match scheme.default_group(cols) {
                _ if wide && fits(cols, cols) => cols,
                group if fits(cols, group) => group,
                _ => 64,
            };
            arbitrary(scheme, rows, cols, group, seed)
        })
    }

    fn equal(m: &Packed, row: usize, col: usize, fast: f32) -> std::result::Result<(), TestCaseError> {
        let reference = m.weight(row, col);
        prop_assert!(
            fast.to_bits() == reference.to_bits() || (fast.is_nan() && reference.is_nan()),
            "{} [{row}, {col}]: {fast} != {reference}",
            m.scheme().name()
        );
        Ok(())
    }

    proptest! {
        #[test]
        fn a_decoded_row_equals_the_reference(m in any_matrix()) {
            let mut row = vec![0.0; m.cols()];
            for r in 0..m.rows() {
                m.decode_row(r, &mut row);
                for (c, &fast) in row.iter().enumerate() {
                    equal(&m, r, c, fast)?;
                }
            }
        }

        #[test]
        fn any_panel_equals_the_reference(m in any_matrix(), row: usize, rows in 1..17usize, col: usize) {
            let row = row % m.rows();
            let col = col % m.cols() / 64 * 64;
            let (rows, cols) = (row..m.rows().min(row + rows), col..m.cols().min(col + PANEL_COLS));
            let mut panel = [0.0; PANEL_ROWS * PANEL_COLS];
            m.scheme().decode_panel(&m, rows.clone(), cols.clone(), &mut panel);
            for r in rows {
                for c in cols.clone() {
                    equal(&m, r, c, panel[(r - row) * PANEL_COLS + c - col])?;
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let refused = |name, rows, cols, group| {
            Packed::layout(scheme::by_name(name).unwrap(), rows, cols, group).unwrap_err().to_string()
        };
        assert!(refused("nf2", 4, 100, 64).contains("multiple of 64"));
        assert!(refused("int3", 4, 192, 128).contains("divide"));
        assert!(refused("int4", 4, 128, 64).contains("always 32"));
        assert!(refused("tcq2", 4, 104, 104).contains("multiple of 16"));
        assert!(refused("tcq3", 4, 128, 64).contains("whole row"));
        assert!(refused("int8", 0, 128, 64).contains("zero"));
        assert!(refused("f32", usize::MAX, 128, 1).contains("absurdly"));
        assert!(refused("f32", 1 << 30, 1 << 30, 1 << 62).contains("absurdly"));
        let short = Packed::new(&scheme::NF2, 1, 64, 64, vec![vec![0; 15].into(), vec![0; 2].into()]);
        assert_eq!(short.unwrap_err(), Error::PartLength { part: "codes", expected: 16, found: 15 });
        let few = Packed::new(&scheme::NF2, 1, 64, 64, vec![vec![0; 16].into()]);
        assert_eq!(few.unwrap_err(), Error::PartCount { scheme: "nf2", expected: 2, found: 1 });
    }

    /// Bits a weight of a large matrix, all side data counted, as the README's table states them.
    #[test]
    fn true_bits() {
        let bits = |name: &str| {
            let scheme = scheme::by_name(name).unwrap();
            let parts = Packed::layout(scheme, 4096, 4096, scheme.default_group(4096)).unwrap();
            parts.iter().map(Part::bytes).sum::<usize>() as f64 * 8.0 / (4096.0 * 4096.0)
        };
        let table = [
            ("nf2", 2.25),
            ("tcq2", 2.00390625),
            ("tcq3", 3.00390625),
            ("tcq4", 4.00390625),
            ("tcq5", 5.00390625),
            ("int3", 3.25),
            ("int4r", 4.125),
            ("int4", 5.0),
            ("int8", 8.125),
            ("bf16", 16.0),
        ];
        for (name, expected) in table {
            assert_eq!(bits(name), expected, "{name}");
        }
    }
}

//! The sparse correction: the entries that the codes miss most.

use half::f16;

/// The stored parts of a sparse correction, as `docs/format.md` lays them out.
#[derive(Debug, Clone)]
pub struct SparseParts {
    /// U32 `[rows + 1]`.
    pub offsets: Vec<u8>,
    /// U16 `[entries]`.
    pub columns: Vec<u8>,
    /// F16 `[entries]`.
    pub values: Vec<u8>,
}

/// Entries of a correction that holds a fraction of `rows x cols` weights.
pub fn entry_count(rows: usize, cols: usize, fraction: f64) -> usize {
    (rows as f64 * cols as f64 * fraction).round() as usize
}

/// The `entries` largest entries of a residual `[rows, cols]`, subtracted from it as stored: those whose squares, times the importance of
/// their column where there is one, are largest.
///
/// Ties go to the lower index, so that the choice is deterministic.
pub fn extract(
    residual: &mut [f32],
    [rows, cols]: [usize; 2],
    entries: usize,
    importance: Option<&[f32]>,
) -> SparseParts {
    let mut order: Vec<u32> = (0..residual.len() as u32).collect();
    if entries < order.len() {
        let by_size = |a: &u32, b: &u32| {
            let size = |i: u32| {
                let i = i as usize;
                importance.map_or(1.0, |importance| importance[i % cols]) * residual[i].powi(2)
            };
            size(*b).total_cmp(&size(*a)).then(a.cmp(b))
        };
        order.select_nth_unstable_by(entries, by_size);
        order.truncate(entries);
    }
    order.sort_unstable();

    let mut parts =
        SparseParts { offsets: Vec::with_capacity(4 * (rows + 1)), columns: vec![], values: vec![] };
    let mut next = order.iter().peekable();
    let mut count = 0u32;
    for row in 0..=rows {
        parts.offsets.extend(count.to_le_bytes());
        while let Some(&index) = next.next_if(|&&index| (index as usize) < (row + 1) * cols) {
            let value = f16::from_f32(residual[index as usize]);
            residual[index as usize] -= value.to_f32();
            parts.columns.extend(((index as usize % cols) as u16).to_le_bytes());
            parts.values.extend(value.to_le_bytes());
            count += 1;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use squish_kernels::Sparse;

    #[test]
    fn takes_the_largest_entries_and_leaves_the_rest() {
        let mut residual = [0.5, -4.0, 0.25, 1.0, 1.0, 0.0];
        let parts = extract(&mut residual, [2, 3], 2, None);
        let sparse =
            Sparse::new(2, 3, parts.offsets.into(), parts.columns.into(), parts.values.into()).unwrap();
        assert_eq!(sparse.row(0).collect::<Vec<_>>(), [(1, -4.0)]);
        assert_eq!(sparse.row(1).collect::<Vec<_>>(), [(0, 1.0)]);
        assert_eq!(residual, [0.5, 0.0, 0.25, 0.0, 1.0, 0.0]);
        // The square of the third entry, four times, is more than that of the fourth.
        let mut residual = [0.5, -4.0, 0.6, 1.0, 1.0, 0.0];
        extract(&mut residual, [2, 3], 2, Some(&[1.0, 1.0, 4.0]));
        assert_eq!(residual[..2], [0.5, 0.0]);
        assert!(residual[2].abs() < 1e-3);
        assert_eq!(entry_count(1536, 576, 0.01), 8847);
    }
}

//! Embedding look-up, and the corrections.

use shader_tests::{ORDERS, Random, Shaders, bytes, snr};
use squish_kernels::{Rotation, Sparse, Weight, metal, scheme};
use std::sync::Arc;

fn id_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

#[test]
fn rows_are_those_of_the_reference() {
    let shaders = Shaders::new();
    for scheme in scheme::ALL {
        let random = &mut Random::new(9);
        let w = random.matrix(scheme.name(), 35, 448);
        let ids = [34, 0, 17, 17];
        let launches = metal::gather(&w.packed, None, ids.len());
        for order in ORDERS {
            let found = shaders.run(&launches, &w.parts(), &[&id_bytes(&ids)], 4 * 4 * 448, order).floats();
            for (row, id) in found.chunks(448).zip(ids) {
                for (col, found) in row.iter().enumerate() {
                    let expected = w.packed.weight(id as usize, col);
                    assert_eq!(*found, expected, "{} {id} {col}", scheme.name());
                }
            }
        }
    }
}

#[test]
fn rotated_rows_come_back_into_the_plain_frame() {
    let shaders = Shaders::new();
    for (cols, block) in [(64, 16), (448, 64), (1024, 1024), (8192, 8192)] {
        let random = &mut Random::new(9);
        let w = random.matrix("int8", 5, cols);
        let rotation = Arc::new(Rotation::new(cols, block, 4).unwrap());
        let weight = Weight::from(w.packed.clone()).with_rotation(rotation.clone()).unwrap();
        let ids = [4, 1];
        let launches = metal::gather(&w.packed, Some(&rotation), 2);
        let found = shaders.run(&launches, &w.parts(), &[&id_bytes(&ids)], 8 * cols, ORDERS[2]).floats();
        let mut expected = vec![0.0; 2 * cols];
        for (row, id) in expected.chunks_mut(cols).zip(ids) {
            weight.row(id as usize, row);
        }
        let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
        assert!(snr(&expected, &found) > 100.0, "{cols} {block}");
    }
}

/// An id past the table gives no numbers, and reads nothing out of bounds.
#[test]
fn an_id_out_of_range_gives_no_number() {
    let shaders = Shaders::new();
    let w = Random::new(2).matrix("nf2", 3, 64);
    let ids = id_bytes(&[3, u32::MAX]);
    let found = shaders.run(&metal::gather(&w.packed, None, 2), &w.parts(), &[&ids], 4 * 2 * 64, ORDERS[0]);
    assert!(found.floats().iter().all(|v| v.is_nan()));
}

#[test]
fn a_transposed_factor_multiplies() {
    let shaders = Shaders::new();
    for scheme in scheme::ALL {
        let (rank, cols, batch) = (16, 448, 3);
        let random = &mut Random::new(1);
        let l = random.matrix(scheme.name(), rank, cols);
        let z = random.floats(batch * rank);
        let launches = [metal::transposed(&l.packed, batch)];
        let dense = l.packed.dequant();
        let expected: Vec<f64> = (0..batch * cols)
            .map(|i| {
                (0..rank)
                    .map(|r| f64::from(z[i / cols * rank + r]) * f64::from(dense[r * cols + i % cols]))
                    .sum()
            })
            .collect();
        let found = shaders.run(&launches, &l.parts(), &[&bytes(&z)], 4 * batch * cols, ORDERS[1]).floats();
        assert!(snr(&expected, &found) > 100.0, "{}", scheme.name());
    }
}

#[test]
fn a_sparse_correction_multiplies() {
    let shaders = Shaders::new();
    let (rows, cols, batch) = (70, 100, 2);
    let random = &mut Random::new(1);
    let (mut offsets, mut columns, mut dense) = (vec![0u32], Vec::new(), vec![0.0f64; rows * cols]);
    for row in 0..rows {
        let entries: Vec<usize> = (0..cols).filter(|_| random.below(10) == 0).collect();
        for col in &entries {
            dense[row * cols + col] = 0.5;
            columns.extend((*col as u16).to_le_bytes());
        }
        offsets.push(offsets[row] + entries.len() as u32);
    }
    let values: Vec<u8> =
        (0..columns.len() / 2).flat_map(|_| half::f16::from_f32(0.5).to_le_bytes()).collect();
    let offsets = id_bytes(&offsets);
    let sparse =
        Sparse::new(rows, cols, offsets.clone().into(), columns.clone().into(), values.clone().into())
            .unwrap();
    let x = random.floats(batch * cols);
    let expected: Vec<f64> = (0..batch * rows)
        .map(|i| (0..cols).map(|c| dense[i % rows * cols + c] * f64::from(x[i / rows * cols + c])).sum())
        .collect();
    let parts = [&offsets[..], &columns, &values];
    let found =
        shaders.run(&[metal::sparse(&sparse, batch)], &parts, &[&bytes(&x)], 4 * batch * rows, ORDERS[2]);
    assert!(snr(&expected, &found.floats()) > 100.0);
}

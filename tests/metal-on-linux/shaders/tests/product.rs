//! Products: every scheme, shape and batch against f64 over the scalar reference.

use shader_tests::{ORDERS, Random, Shaders, bytes, snr, traced};
use squish_kernels::{metal, scheme};

/// `x W^T` in f64.
fn expected(x: &[f32], w: &[f32], cols: usize) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(x, w))).collect()
}

/// Widths that a scheme stores: a part of a simdgroup's reach, all of it, and more.
fn widths(name: &str) -> Vec<usize> {
    match name {
        name if name.starts_with("tcq") => vec![16, 80, 512, 1040],
        "bf16" | "f16" | "f32" => vec![1, 7, 64, 130, 132, 516],
        _ => vec![64, 128, 448, 1088],
    }
}

#[test]
fn every_scheme_equals_the_reference() {
    let shaders = Shaders::new();
    for scheme in scheme::ALL {
        let (name, mut worst) = (scheme.name(), f64::INFINITY);
        for (i, cols) in widths(name).into_iter().enumerate() {
            for (rows, batch) in
                [(1, 1), (37, 1), (16, 2), (21, 3), (8, 5), (3, 8), (17, 11), (70, 65), (1, 9)]
            {
                let random = &mut Random::new((rows * cols + batch) as u64);
                let w = random.matrix(name, rows, cols);
                let x = random.floats(batch * cols);
                let order = ORDERS[(i + batch) % ORDERS.len()];
                let launches = [metal::product(&w.packed, batch)];
                let found =
                    shaders.run(&launches, &w.parts(), &[&bytes(&x)], 4 * batch * rows, order).floats();
                let ratio = snr(&expected(&x, &w.packed.dequant(), cols), &found);
                assert!(ratio > 100.0, "{name} {rows} x {cols}, {batch} inputs, {order:?}: {ratio} dB");
                worst = worst.min(ratio);
            }
        }
        println!("{name}: at least {worst:.0} dB");
    }
}

/// Several matrices of one input in one launch: what they give one at a time, to the bit, and each code read once.
#[test]
fn products_of_one_input_together() {
    let shaders = Shaders::new();
    let mut cases: Vec<Vec<&str>> =
        scheme::ALL.iter().flat_map(|s| [vec![s.name(); 2], vec![s.name(); 3]]).collect();
    cases.extend([vec!["tcq2", "tcq3", "tcq5"], vec!["tcq4", "tcq2"]]);
    for (i, names) in cases.iter().enumerate() {
        for cols in widths(names[0]) {
            let random = &mut Random::new(i as u64);
            let rows = [37, 1, 16];
            let all: Vec<_> =
                names.iter().zip(rows).map(|(name, rows)| random.matrix(name, rows, cols)).collect();
            let weights: Vec<_> = all.iter().map(|w| &w.packed).collect();
            assert_eq!(metal::joined(&weights), names.len());
            let x = bytes(&random.floats(cols));
            let mut expected = Vec::new();
            for w in &all {
                let launches = [metal::product(&w.packed, 1)];
                expected
                    .extend(shaders.run(&launches, &w.parts(), &[&x], 4 * w.packed.rows(), ORDERS[0]).output);
            }
            let parts: Vec<&[u8]> = all.iter().flat_map(|w| w.parts()).collect();
            let launches = [metal::products(&weights)];
            let found = shaders.run(&launches, &parts, &[&x], expected.len(), ORDERS[i % 3]);
            assert_eq!(found.output, expected, "{names:?} of {cols}");
            for (i, w) in all.iter().enumerate().filter(|_| traced()) {
                assert_eq!(
                    found.reports[0].traffic[i].loaded,
                    w.parts[0].len() as u64,
                    "{names:?} of {cols}"
                );
            }
        }
    }
    let random = &mut Random::new(1);
    let [a, b, c] = ["int4", "int8", "tcq2"].map(|name| random.matrix(name, 3, 64).packed);
    assert_eq!((metal::joined(&[&a, &b]), metal::joined(&[&c, &a]), metal::joined(&[&c; 5])), (1, 1, 3));
}

#[test]
fn orders_do_not_matter() {
    let shaders = Shaders::new();
    for scheme in scheme::ALL {
        let random = &mut Random::new(3);
        let w = random.matrix(scheme.name(), 33, 192);
        let x = bytes(&random.floats(192));
        let launches = [metal::product(&w.packed, 1)];
        let found = ORDERS.map(|order| shaders.run(&launches, &w.parts(), &[&x], 4 * 33, order).output);
        assert!(found.iter().all(|y| *y == found[0]), "{}", scheme.name());
    }
}

/// The codes are loaded exactly once, by one lane. The input is fetched once for the rows of a simdgroup, where all columns are
/// its own, or of a threadgroup, whose simdgroups share the columns.
#[test]
fn codes_are_read_once_and_inputs_once_a_tile_of_rows() {
    let shaders = Shaders::new();
    if !traced() {
        return;
    }
    for scheme in scheme::ALL {
        let (name, rows, cols) = (scheme.name(), 64, 512);
        let random = &mut Random::new(5);
        let w = random.matrix(name, rows, cols);
        let tile = if scheme.strip() > 1 { scheme.strip() } else { 4 };
        for batch in [1, 4] {
            let x = bytes(&random.floats(batch * cols));
            let launches = [metal::product(&w.packed, batch)];
            let outcome = shaders.run(&launches, &w.parts(), &[&x], 4 * batch * rows, ORDERS[0]);
            let traffic = |argument: &str| {
                let i = launches[0]
                    .arguments
                    .iter()
                    .position(|(name, _)| *name == argument)
                    .expect("an argument");
                outcome.reports[0].traffic[i]
            };
            let codes = traffic(launches[0].arguments[0].0);
            assert_eq!(codes.loaded, w.parts[0].len() as u64, "{name}: codes");
            assert_eq!(codes.distinct, codes.loaded, "{name}: codes");
            for (i, part) in w.parts.iter().enumerate().skip(1) {
                let side = traffic(launches[0].arguments[i].0);
                // For several inputs, two simdgroups finish the rows of a strip of tiles.
                let times = if batch > 1 && tile > 4 { 2 } else { 1 };
                assert_eq!(side.fetched, times * part.len() as u64, "{name}: {}", launches[0].arguments[i].0);
            }
            assert_eq!(traffic("x").fetched, (x.len() * rows / tile) as u64, "{name}: x");
            assert_eq!(traffic("y").stored, 4 * (batch * rows) as u64, "{name}: y");
        }
    }
}

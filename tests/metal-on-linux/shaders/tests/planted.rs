//! Faults planted on purpose, each of which a test must find.

use shader_runner::{Order, lint};
use shader_tests::{Asked, ORDERS, Pages, Random, Shaders, bytes, queries, snr, traced};
use squish_kernels::{
    Rotation,
    kv::Mode,
    metal::{self, Before, Launch},
    ops::DenseAttention,
};

/// Kernels that no test here runs, of files of which it runs others: they would take long to compile.
const OTHERS: [&str; 9] = [
    "ATTENTION(1)",
    "ATTENTION(2)",
    "ATTENTION(4)",
    "ATTENTION(8)",
    "ATTENTION_PAGES(2)",
    "ATTENTION_PAGES(3)",
    "ATTENTION_PAGES(4)",
    "ATTENTION_TILED(128)",
    "ATTENTION_TILED(256)",
];

/// Files of the project's shaders, in which `what`, which is there once, is replaced.
fn planted(files: &[&str], what: &str, with: &str) -> String {
    let mut source = String::new();
    for file in metal::SOURCE.split("#line 1 ").skip(1) {
        if files.iter().any(|name| file.starts_with(&format!("\"{name}\""))) {
            source.push_str(&format!("#line 1 {file}"));
        }
    }
    assert_eq!(source.matches(what).count(), 1, "`{what}` is there once");
    for other in OTHERS {
        source = source.replace(&format!("\n{other}\n"), "\n\n");
    }
    source.replace(what, with)
}

/// What comparing a run's output with what is expected finds, if anything.
fn fault(
    shaders: &Shaders,
    launches: &[Launch],
    parts: &[&[u8]],
    inputs: &[&[u8]],
    expected: &[f64],
) -> Option<String> {
    for order in ORDERS {
        match shaders.try_run(launches, parts, inputs, 4 * expected.len(), order) {
            Err(fault) => return Some(fault),
            Ok(found) => {
                let ratio = snr(expected, &found.floats());
                if ratio.is_nan() || ratio < 100.0 {
                    return Some(format!("{ratio:.0} dB in order {order:?}"));
                }
            }
        }
    }
    None
}

/// What a test of a product in this scheme finds, if anything.
fn product(source: &str, scheme: &str, rows: usize) -> Option<String> {
    let shaders = Shaders::of(source).unwrap_or_else(|e| panic!("{e}"));
    let random = &mut Random::new(1);
    let (w, x) = (random.matrix(scheme, rows, 448), random.floats(448));
    let dense = w.packed.dequant();
    let dot = |row: &[f32]| row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
    let expected: Vec<f64> = dense.chunks(448).map(dot).collect();
    let launches = [metal::product(&w.packed, 1)];
    fault(&shaders, &launches, &w.parts(), &[&bytes(&x)], &expected)
}

/// What a test of attention over pages finds, for so many queries.
fn attention(source: &str, n: usize) -> Option<String> {
    let shaders = Shaders::of(source).unwrap_or_else(|e| panic!("{e}"));
    let (random, heads, positions) = (&mut Random::new(1), 2, 150);
    let pages = Pages::new(Mode::K8V4, [1, positions, 64], 0, n, random);
    let (q, held) = queries(random, heads * n * 64);
    let op = DenseAttention { scale: 0.1, softcap: None, window: None };
    let expected = pages.attention(&op, Asked { heads, n }, &q);
    let launches = [metal::attention_pages(&op, [heads, n], positions, &pages.shape()).unwrap()];
    let buffers = pages.buffers();
    let inputs: Vec<&[u8]> = std::iter::once(&held).chain(&buffers).map(Vec::as_slice).collect();
    fault(&shaders, &launches, &[], &inputs, &expected)
}

const TRELLIS: [&str; 2] = ["common.metal", "gemv_trellis.metal"];
const UNITS: [&str; 2] = ["common.metal", "gemv_units.metal"];

#[track_caller]
fn found(fault: Option<String>, expected: &str) {
    let fault = fault.expect("the fault is found");
    println!("{fault}");
    assert!(fault.contains(expected), "found otherwise: {fault}");
}

#[test]
fn the_sources_as_they_are_have_none() {
    assert_eq!(product(metal::SOURCE, "tcq3", 37), None);
    assert_eq!(product(metal::SOURCE, "int3", 37), None);
}

#[test]
fn a_barrier_left_out() {
    if !traced() {
        return;
    }
    let barrier = "threadgroup_barrier(mem_flags::mem_threadgroup);";
    let fill = "levels[i] = float(table[i]);\n  ";
    let source = planted(&TRELLIS, &format!("{fill}{barrier}"), fill);
    found(product(&source, "tcq2", 16), "a race with a store: threadgroup memory 0");
    let source = planted(
        &TRELLIS,
        &format!("{barrier}\n  for (uint i = thread_index; i < 16 * N"),
        "for (uint i = thread_index; i < 16 * N",
    );
    found(product(&source, "tcq2", 16), "a race with a store: threadgroup memory 1");

    let files = ["common.metal", "rotate.metal"];
    let source = planted(&files, &format!("= v[e];\n    {barrier}"), "= v[e];\n");
    let shaders = Shaders::of(&source).unwrap();
    let rotation = Rotation::new(512, 512, 1).unwrap();
    let x = bytes(&Random::new(1).floats(512));
    let launches = metal::rotate(&rotation, 1, Before::Nothing);
    found(shaders.try_run(&launches, &[], &[&x], 2048, Order::Forward).err(), "a race");
}

#[test]
fn a_tail_one_too_long() {
    let as_what = if traced() { "an access out of bounds" } else { "AddressSanitizer: heap-buffer-overflow" };
    let source = planted(&TRELLIS, "row < p.rows && n < p.batch", "row <= p.rows && n < p.batch");
    found(product(&source, "tcq4", 37), as_what);
    let source = planted(&UNITS, "lane == 0 && row < p.rows", "lane == 0 && row <= p.rows");
    found(product(&source, "int8", 37), as_what);
}

/// In attention over pages: a barrier, the end of what is seen, a lane's share of a unit, a buffer index.
#[test]
fn attention_with_faults() {
    if !traced() {
        return;
    }
    let one =
        ["common", "rotate", "attention", "pages", "attention_pages"].map(|name| format!("{name}.metal"));
    let one = one.each_ref().map(String::as_str);
    let many = [&one[..], &["attention_tiled.metal"]].concat();
    assert_eq!(attention(&planted(&many, "In the end the simdgroups'", "At last the simdgroups'"), 1), None);

    let load = "blocks.load(VALUES,";
    let source =
        planted(&many, &format!("threadgroup_barrier(mem_flags::mem_threadgroup);\n    {load}"), load);
    found(attention(&source, 9), "a race with a load: threadgroup memory 1");
    let source = planted(&one, "if (page * 64 + place >= end) continue;", "");
    found(attention(&source, 1), "NaN dB");
    let source = planted(&many, "const bool there = page * 64 + at < end && unit", "const bool there = unit");
    found(attention(&source, 9), "NaN dB");
    let source =
        planted(&one, "words[i % 8 / 4] >> (8 * (i % 4) + 4 * (i / 8))", "words[i / 8] >> (4 * (i % 8))");
    found(attention(&source, 1), "dB");
    let there =
        "device const half* key_scales [[buffer(5)]],\n    device const half* value_scales [[buffer(6)]]";
    let with =
        "device const half* key_scales [[buffer(6)]],\n    device const half* value_scales [[buffer(5)]]";
    found(attention(&planted(&one, there, with), 1), "is `key_scales`, bound is `value_scales`");
}

#[test]
fn two_buffer_indices_swapped() {
    if !traced() {
        return;
    }
    let there = "device const float* x [[buffer(3)]],\n    device float* y [[buffer(4)]]";
    let source =
        planted(&TRELLIS, there, "device const float* x [[buffer(4)]],\n    device float* y [[buffer(3)]]");
    found(product(&source, "tcq2", 16), "buffer 4 is `x`, bound is `y`");
}

#[test]
fn lanes_that_part_ways() {
    if !traced() {
        return;
    }
    let there = "const uint tiles = p.cols / 16;";
    let source = planted(&TRELLIS, there, "const uint tiles = p.cols / 16;\n  if (lane > 20) return;");
    found(product(&source, "tcq2", 16), "a simd operation after a lane has returned");
    let source = planted(
        &TRELLIS,
        "sum += simd_shuffle_xor(sum, ushort(16));",
        "if (lane < 16) sum += simd_shuffle_xor(sum, ushort(16));",
    );
    found(product(&source, "tcq2", 16), "lanes at different simd operations");
}

#[test]
fn a_load_that_is_not_aligned() {
    if !traced() {
        return;
    }
    let source = planted(&TRELLIS, "+ 16 * tile);", "+ 16 * tile + 1);");
    found(product(&source, "tcq2", 16), "an access that is not aligned");
}

#[test]
fn a_wrong_bit() {
    if !traced() {
        return;
    }
    let source =
        planted(&TRELLIS, "const uint at = K * i / 32,", "const uint at = i == 31 ? 0 : K * i / 32,");
    found(product(&source, "tcq2", 16), "dB");
    let source = planted(&UNITS, ">> (16 * (q % 2) + b)) & 1) << 2", ">> (16 * (q % 2) + b)) & 1) << 1");
    found(product(&source, "int3", 16), "dB");
}

#[test]
fn pointers_into_another_address_space() {
    if !traced() {
        return;
    }
    let files = ["common.metal", "rotate.metal"];
    for (what, with) in [
        ("device const float* row = x +", "threadgroup const float* row = x +"),
        ("  device float* row = y +", "  float* row = y +"),
        ("float eps, threadgroup float* partial,", "float eps, device float* partial,"),
        ("METAL_FUNC float gelu(float x)", "METAL_FUNC float gelu(thread float& x)"),
    ] {
        let source = planted(&files, what, with);
        let refused = match with.contains("gelu") {
            // Called from another file.
            true => {
                lint::address_spaces(&planted(&[&files[..], &["elementwise.metal"]].concat(), what, with))
            }
            false => lint::address_spaces(&source),
        };
        assert!(refused.is_err(), "{with}");
    }
}

//! Keys and values in pages: put there, packed, and attention over them.

use half::f16;
use shader_tests::{
    Asked, ORDERS, Pages, Random, RawHeads, Shaders, bytes, queries, ready_heads, rotate, snr, traced,
};
use squish_kernels::{
    Rotation,
    kv::{Codec, Mode, PAGE, Side, Store, history::SEED},
    metal::{self, HeadsShape, PagesShape},
    ops::DenseAttention,
};

/// Every codec on each side.
const MODES: [Mode; 6] = [
    Mode::new(Codec::Int8, Codec::Int8),
    Mode::new(Codec::Int8, Codec::Int4),
    Mode::new(Codec::Int4, Codec::Int2),
    Mode::new(Codec::Int2, Codec::Int8),
    Mode::new(Codec::F16, Codec::Int4),
    Mode::new(Codec::Int4, Codec::F16),
];

#[test]
fn attention_equals_the_definition() {
    let shaders = Shaders::new();
    let mut worst = f64::INFINITY;
    // Heads, key heads, queries, positions, width, recent positions.
    for (i, [heads, kv_heads, n, positions, head_dim, recent]) in [
        [4, 2, 1, 1, 64, 128],
        [6, 2, 1, 700, 128, 128],
        [2, 1, 3, 450, 256, 0],
        [3, 3, 2, 385, 192, 64],
        [2, 2, 5, 323, 64, 128],
        [7, 1, 1, 128, 64, 0],
        // In tiles.
        [4, 2, 70, 300, 64, 128],
        [7, 1, 9, 200, 128, 0],
        [1, 1, 40, 260, 192, 64],
        [2, 1, 8, 70, 256, 128],
    ]
    .into_iter()
    .enumerate()
    {
        for (j, mode) in MODES.into_iter().enumerate() {
            for (softcap, window) in [(None, None), (Some(3.0), Some(200))] {
                let random = &mut Random::new((i * 10 + j) as u64);
                let pages = Pages::new(mode, [kv_heads, positions, head_dim], recent, n, random);
                let (q, q_bytes) = queries(random, heads * n * head_dim);
                let op = DenseAttention { scale: 0.1, softcap, window };
                let expected = pages.attention(&op, Asked { heads, n }, &q);
                let launch = metal::attention_pages(&op, [heads, n], positions, &pages.shape()).unwrap();
                let buffers = pages.buffers();
                let inputs: Vec<&[u8]> =
                    std::iter::once(&q_bytes).chain(&buffers).map(Vec::as_slice).collect();
                let y =
                    shaders.run(&[launch], &[], &inputs, 4 * expected.len(), ORDERS[(i + j) % 3]).floats();
                let ratio = snr(&expected, &y);
                assert!(
                    ratio > 100.0,
                    "{mode} {heads}/{kv_heads} heads of {head_dim}, {n} of {positions}: {ratio} dB"
                );
                worst = worst.min(ratio);
            }
        }
    }
    println!("at least {worst:.0} dB");
    let random = &mut Random::new(1);
    let pages = Pages::new(Mode::K8V4, [1, 9, 320], 128, 1, random);
    let op = DenseAttention { scale: 1.0, softcap: None, window: None };
    assert!(metal::attention_pages(&op, [1, 1], 9, &pages.shape()).is_none());
}

/// A query head reads each byte that it sees once.
#[test]
fn pages_are_read_once_a_query_head() {
    let shaders = Shaders::new();
    if !traced() {
        return;
    }
    let (heads, positions, head_dim) = (3, 640, 128);
    for mode in MODES {
        let random = &mut Random::new(2);
        let pages = Pages::new(mode, [1, positions, head_dim], 128, 1, random);
        let (_, q) = queries(random, heads * head_dim);
        let op = DenseAttention { scale: 0.1, softcap: None, window: None };
        let launch = metal::attention_pages(&op, [heads, 1], positions, &pages.shape()).unwrap();
        let buffers = pages.buffers();
        let inputs: Vec<&[u8]> = std::iter::once(&q).chain(&buffers).map(Vec::as_slice).collect();
        let found = shaders.run(&[launch], &[], &inputs, 4 * heads * head_dim, ORDERS[0]);
        let loaded = |buffer: usize| found.reports[0].traffic[buffer].loaded as usize;
        // Of ten pages, three are recent to the last position.
        for (side, codec) in [mode.keys, mode.values].into_iter().enumerate() {
            let (exact, packed) = if codec.is_packed() { (3, 7) } else { (10, 0) };
            assert_eq!(loaded(1 + side), heads * exact * head_dim * PAGE * 2, "{mode}");
            if packed > 0 {
                assert_eq!(loaded(3 + side), heads * packed * head_dim * codec.unit_bytes(), "{mode}");
                assert_eq!(loaded(5 + side), heads * packed * PAGE * 2, "{mode}");
            }
        }
    }
}

/// In tiles, each byte of keys and values that the queries of a tile see is read once for all of them, whatever their heads.
#[test]
fn pages_are_read_once_a_tile() {
    let shaders = Shaders::new();
    if !traced() {
        return;
    }
    // Of the page that the queries are in, which is not packed yet, and two before it.
    let (heads, kv_heads, n, positions, head_dim) = (4, 2, 64, 192, 64);
    for mode in MODES {
        let random = &mut Random::new(2);
        let pages = Pages::new(mode, [kv_heads, positions, head_dim], 0, n, random);
        let (_, q) = queries(random, heads * n * head_dim);
        let op = DenseAttention { scale: 0.1, softcap: None, window: None };
        let launch = metal::attention_pages(&op, [heads, n], positions, &pages.shape()).unwrap();
        let buffers = pages.buffers();
        let inputs: Vec<&[u8]> = std::iter::once(&q).chain(&buffers).map(Vec::as_slice).collect();
        let tiles = launch.groups[1];
        assert_eq!(tiles, n * heads / kv_heads / 32);
        let found = shaders.run(&[launch], &[], &inputs, 4 * heads * n * head_dim, ORDERS[0]);
        let loaded = |buffer: usize| found.reports[0].traffic[buffer].loaded as usize;
        // A tile is 16 positions of two heads: of the last page it sees the values up to its own end.
        let last: usize = (1..=tiles).map(|tile| 16 * tile).sum();
        for (side, codec) in [mode.keys, mode.values].into_iter().enumerate() {
            let (page, unit) = (head_dim * PAGE * 2, head_dim * codec.unit_bytes());
            let before = 2 * tiles * kv_heads;
            let of_last = if side == 0 { tiles * page } else { last * head_dim * 2 } * kv_heads;
            let (exact, packed) = if codec.is_packed() { (0, before * unit) } else { (before * page, 0) };
            assert_eq!(loaded(1 + side), exact + of_last, "{mode}");
            assert_eq!(loaded(3 + side) * usize::from(packed > 0), packed, "{mode}");
        }
        assert_eq!(loaded(0), q.len(), "{mode}");
    }
}

/// Heads that are put into pages: queries rotated as keys, keys and values in f16 at their places, all else left alone.
#[test]
fn heads_are_put_into_pages() {
    let shaders = Shaders::new();
    let mut case = 0;
    for [heads, kv_heads, positions, head_dim, start] in
        [[4, 2, 1, 64, 0], [7, 1, 1, 128, 300], [2, 2, 70, 192, 60], [3, 1, 3, 256, 190]]
    {
        for mode in MODES {
            case += 1;
            let random = &mut Random::new(case);
            let (biased, norm) =
                ([false, true][case as usize % 2], [None, Some(1e-6)][case as usize / 2 % 2]);
            let s = HeadsShape { heads, kv_heads, positions, head_dim, start, strides: [0, 0], biased, norm };
            let rotation = Rotation::new(head_dim, Rotation::best_block(head_dim).unwrap(), SEED).unwrap();
            let (rings, codecs) = ([4, 6], [mode.keys, mode.values]);
            let pages = PagesShape { kv_heads, head_dim, recent: 2, rings, codecs, rotation: &rotation };
            let raw = RawHeads::new(&s, random);
            let (RawHeads { qkv, biases, factors, .. }, table) = (&raw, raw.table());
            let kept = rings.map(|ring| ring * kv_heads * head_dim * PAGE * 2).into_iter().chain([16; 4]);
            let inputs = raw.inputs(&s, kept.map(|bytes| vec![0xff; bytes]));
            let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
            let launches = metal::append_pages(&s, &pages, 0..0);
            assert_eq!(launches.len(), 1);
            let found = shaders.run(&launches, &[], &inputs, 4 * qkv[0].len(), ORDERS[case as usize % 3]);
            let factor = |i: usize| Some(&factors[i][..]);
            let rotated = |mut heads: Vec<f64>, codec: Codec| {
                if codec.is_packed() {
                    heads.chunks_mut(head_dim).for_each(|head| rotate(&rotation, head, false));
                }
                heads
            };
            let q = rotated(ready_heads(&s, heads, &qkv[0], &biases[0], factor(0), table), mode.keys);
            let ratio = snr(&q, &found.floats());
            assert!(ratio > 100.0, "{s:?} {mode}: queries, {ratio} dB");
            let keys = ready_heads(&s, kv_heads, &qkv[1], &biases[1], factor(1), table);
            let values = ready_heads(&s, kv_heads, &qkv[2], &biases[2], None, None);
            for (i, (side, expected)) in [(Side::Keys, keys), (Side::Values, values)].into_iter().enumerate()
            {
                let expected = rotated(expected, codecs[i]);
                let held = &found.inputs[3 + i];
                let bytes = held.len() / rings[i];
                let ring: Vec<Store> = (0..rings[i])
                    .map(|page| {
                        let store = Store::new(side, Codec::F16, kv_heads, head_dim);
                        store.from_parts(&held[page * bytes..][..bytes], &[]).unwrap()
                    })
                    .collect();
                let new: Vec<f32> = (0..expected.len())
                    .map(|at| {
                        let (row, channel) = (at / head_dim, at % head_dim);
                        let (head, position) = (row / positions, start + row % positions);
                        ring[position / PAGE % rings[i]].value(head, position % PAGE, channel)
                    })
                    .collect();
                // An f16 has 11 bits.
                let ratio = snr(&expected, &new);
                assert!(ratio > 65.0, "{s:?} {mode}: {side:?}, {ratio} dB");
                let untouched = held.as_chunks::<2>().0.iter().filter(|b| **b == [0xff; 2]).count();
                assert_eq!(untouched, held.len() / 2 - expected.len(), "{s:?} {mode}: {side:?}");
            }
        }
    }
}

/// The heads of the position after five pages.
fn next_heads(kv_heads: usize, head_dim: usize) -> HeadsShape {
    let strides = [0, 0];
    HeadsShape { heads: 1, kv_heads, positions: 1, head_dim, start: 320, strides, biased: false, norm: None }
}

/// Codes and scales are those of the CPU, but where two levels are equally near.
#[test]
fn pages_are_packed_as_on_the_cpu() {
    let shaders = Shaders::new();
    for (i, mode) in MODES.into_iter().chain([Mode::new(Codec::Int2, Codec::Int4)]).enumerate() {
        for [kv_heads, head_dim] in [[1, 64], [2, 128], [1, 192], [2, 256]] {
            let random = &mut Random::new(i as u64);
            // Five pages, of which the first two are packed: all five are held as they came, with room for one more.
            let held = Pages::new(mode, [kv_heads, 320, head_dim], 128, 128, random);
            let (pages, buffers) = (held.shape(), held.buffers());
            let s = next_heads(kv_heads, head_dim);
            let [q, k, v] = [1, kv_heads, kv_heads].map(|heads| bytes(&random.floats(heads * head_dim)));
            let table = bytes(&random.floats(head_dim / 2));
            let mut inputs = vec![q, k, v, buffers[0].clone(), buffers[1].clone()];
            inputs.extend(buffers[2..].iter().map(|buffer| vec![0xff; buffer.len()]));
            inputs.extend([table.clone(), table]);
            // In the launch of the next position's heads, or of a large portion's in one of its own.
            for (positions, launches) in [(1, 1), (0, 2)] {
                let s = HeadsShape { positions, start: if positions == 1 { 320 } else { 0 }, ..s };
                let all = metal::append_pages(&s, &pages, 0..2);
                assert_eq!(all.len(), launches);
                let last = &all[launches - 1..];
                let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                let found = shaders.run(last, &[], &inputs, 4 * head_dim, ORDERS[i % 3]);
                for (j, (side, codec)) in
                    [(Side::Keys, mode.keys), (Side::Values, mode.values)].into_iter().enumerate()
                {
                    if !codec.is_packed() {
                        continue;
                    }
                    let (units, scales) = (&found.inputs[5 + j], &found.inputs[7 + j]);
                    let (unit, scale) = (kv_heads * head_dim * codec.unit_bytes(), kv_heads * PAGE * 2);
                    assert!(units[2 * unit..].iter().chain(&scales[2 * scale..]).all(|b| *b == 0xff));
                    for page in 0..2 {
                        let store = |units: &[u8], scales: &[u8]| {
                            let store = Store::new(side, codec, kv_heads, head_dim);
                            store
                                .from_parts(&units[page * unit..][..unit], &scales[page * scale..][..scale])
                                .unwrap()
                        };
                        let found = store(units, scales);
                        same_codes(&store(&buffers[2 + j], &buffers[4 + j]), &found, kv_heads, head_dim);
                    }
                }
            }
        }
    }
}

/// Scales within a unit of the last place, and the same codes; but where sums that were added up in another order make a number fall to
/// the other of two levels that are equally near: in few vectors, whose scale then is nearly the same.
fn same_codes(expected: &Store, found: &Store, kv_heads: usize, head_dim: usize) {
    let mut others = 0;
    for head in 0..kv_heads {
        for position in 0..PAGE {
            let [a, b] = [expected, found].map(|store| store.scales(head).unwrap()[position]);
            let level =
                |store: &Store, scale: f16, channel| store.value(head, position, channel) / scale.to_f32();
            let same = (0..head_dim).all(|c| (level(expected, a, c) - level(found, b, c)).abs() < 1e-3);
            others += usize::from(!same || a.to_bits().abs_diff(b.to_bits()) > 1);
            assert!((a.to_f32() / b.to_f32() - 1.0).abs() < 0.01, "{a} {b}");
        }
    }
    assert!(others <= 1, "{others} of {} vectors differ", kv_heads * PAGE);
}

/// What is not finite has a scale that is none, so that it is not taken for a number.
#[test]
fn what_is_no_number_stays_none() {
    let shaders = Shaders::new();
    let (kv_heads, head_dim) = (1, 64);
    let held = Pages::new(Mode::K8V4, [kv_heads, 320, head_dim], 128, 128, &mut Random::new(1));
    let (pages, mut buffers) = (held.shape(), held.buffers());
    // Position 5 of page 0: one channel of its key.
    buffers[0][2 * (7 * PAGE + 5)..][..2].copy_from_slice(&f16::INFINITY.to_le_bytes());
    let s = next_heads(kv_heads, head_dim);
    let mut inputs = vec![vec![0; 4 * head_dim]; 3];
    inputs.extend(buffers);
    inputs.extend([vec![0; 2 * head_dim], vec![0; 2 * head_dim]]);
    let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
    let found = shaders.run(&metal::append_pages(&s, &pages, 0..2), &[], &inputs, 4 * head_dim, ORDERS[0]);
    let scales = found.inputs[7].as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b));
    let none: Vec<usize> =
        scales.take(2 * PAGE).enumerate().filter(|(_, s)| !s.is_finite()).map(|(i, _)| i).collect();
    assert_eq!(none, [5]);
}

/// A key whose scale is none makes what sees it no number, and nothing else: of one query at a time as in tiles.
#[test]
fn what_sees_no_number_is_none() {
    let shaders = Shaders::new();
    let (heads, positions, head_dim, at) = (2, 200, 64, 95);
    for n in [1, 9] {
        let random = &mut Random::new(3);
        let pages = Pages::new(Mode::K8V4, [1, positions, head_dim], 0, n, random);
        let (q, held) = queries(random, heads * n * head_dim);
        let mut buffers = pages.buffers();
        buffers[4][2 * at..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
        let inputs: Vec<&[u8]> = std::iter::once(&held).chain(&buffers).map(Vec::as_slice).collect();
        // The first of nine queries sees positions 91 to 191, the fifth is the last that sees 95; the only one sees it with 105.
        let window = Some(if n == 1 { 105 } else { 101 });
        let op = DenseAttention { scale: 0.1, softcap: None, window };
        let expected = pages.attention(&op, Asked { heads, n }, &q);
        let launch = metal::attention_pages(&op, [heads, n], positions, &pages.shape()).unwrap();
        for order in ORDERS {
            let y = shaders.run(std::slice::from_ref(&launch), &[], &inputs, 4 * expected.len(), order);
            let y = y.floats();
            let (none, some) = y.split_at(if n == 1 { 1 } else { 5 } * heads * head_dim);
            assert!(none.iter().all(|v| v.is_nan()), "{n} queries");
            assert!(some.is_empty() || snr(&expected[none.len()..], some) > 100.0, "{n} queries");
        }
    }
}

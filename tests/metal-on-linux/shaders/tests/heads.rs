//! Heads made ready for attention, against the definition in f64.

use shader_tests::{ORDERS, Random, RawHeads, Shaders, ready_heads, snr};
use squish_kernels::metal::{self, HeadsShape};

const EPS: f32 = 1e-6;

#[test]
fn equals_the_definition() {
    let shaders = Shaders::new();
    let mut case = 0;
    for (heads, kv_heads, positions, head_dim, start) in
        [(4, 2, 1, 64, 0), (8, 1, 1, 128, 300), (3, 3, 5, 20, 7), (2, 1, 2, 256, 1), (6, 2, 9, 2, 0)]
    {
        for (biased, norm) in [(false, None), (true, None), (false, Some(EPS)), (true, Some(EPS))] {
            for half in [false, true] {
                case += 1;
                let random = &mut Random::new(case);
                let capacity = start + positions + 3;
                let strides = [capacity * head_dim, (capacity + 1) * head_dim];
                let s = HeadsShape { heads, kv_heads, positions, head_dim, start, strides, biased, norm };
                let raw = RawHeads::new(&s, random);
                let (RawHeads { qkv, biases, factors, .. }, table) = (&raw, raw.table());
                let size = if half { 2 } else { 4 };
                let inputs = raw.inputs(&s, strides.map(|stride| vec![0xff; kv_heads * stride * size]));
                let inputs: Vec<&[u8]> = inputs.iter().map(Vec::as_slice).collect();
                let launches = [metal::split_heads(&s, half)];
                let order = ORDERS[case as usize % 3];
                let found = shaders.run(&launches, &[], &inputs, 4 * qkv[0].len(), order);
                let q = ready_heads(&s, heads, &qkv[0], &biases[0], Some(&factors[0]), table);
                let ratio = snr(&q, &found.floats());
                assert!(ratio > 100.0, "{s:?}: queries, {ratio} dB");
                for (i, stride) in strides.into_iter().enumerate() {
                    let (factor, table) = if i == 0 { (Some(&factors[1][..]), table) } else { (None, None) };
                    let expected = ready_heads(&s, kv_heads, &qkv[1 + i], &biases[1 + i], factor, table);
                    let held: Vec<f32> = match half {
                        false => found.inputs[3 + i]
                            .as_chunks::<4>()
                            .0
                            .iter()
                            .map(|b| f32::from_le_bytes(*b))
                            .collect(),
                        true => {
                            let halves = found.inputs[3 + i].as_chunks::<2>().0.iter();
                            halves.map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
                        }
                    };
                    let (mut new, mut untouched) = (Vec::new(), 0);
                    for head in held.chunks(stride) {
                        let at = start * head_dim..(start + positions) * head_dim;
                        new.extend_from_slice(&head[at]);
                        untouched += head.iter().filter(|v| v.is_nan()).count();
                    }
                    assert_eq!(untouched, kv_heads * (stride - positions * head_dim), "{s:?}");
                    // An f16 has 11 bits.
                    let (ratio, bound) = (snr(&expected, &new), if half { 65.0 } else { 100.0 });
                    assert!(ratio > bound, "{s:?} half {half}: {ratio} dB");
                }
            }
        }
    }
}

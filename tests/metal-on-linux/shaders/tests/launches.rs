//! What can be said of shaders and launches without running them.

use shader_runner::lint;
use shader_tests::{Random, Shaders};
use squish_kernels::{
    Rotation, Sparse,
    kv::Codec,
    metal::{self, Before, HeadsShape, Launch, PagesShape, Sum},
    ops::DenseAttention,
    scheme,
};
use std::collections::BTreeSet;

const SUMS: [Sum; 3] = [Sum::Nothing, Sum::Added, Sum::Normed { eps: 1e-5 }];

/// Launches of every kind.
fn launches() -> Vec<Launch> {
    let mut all = Vec::new();
    for scheme in scheme::ALL {
        for cols in [64, 4096, 18944] {
            let w = Random::new(1).matrix(scheme.name(), 5, cols).packed;
            all.extend((1..=9).map(|batch| metal::product(&w, batch)));
            all.push(metal::transposed(&w, 2));
            let rotation = Rotation::new(cols, 64, 1).unwrap();
            all.extend(metal::gather(&w, Some(&rotation), 3));
        }
    }
    for name in ["bf16", "f16", "f32"] {
        let w = Random::new(1).matrix(name, 5, 7).packed;
        all.extend((1..=9).map(|batch| metal::product(&w, batch)));
    }
    for block in (1..=15).map(|bits| 1 << bits) {
        let rotation = Rotation::new(block, block, 1).unwrap();
        for before in [Before::Nothing, Before::Silu, Before::Gelu] {
            all.extend(metal::rotate(&rotation, 2, before));
        }
        for sum in SUMS {
            all.extend(metal::norm(block, 2, sum, 1e-6, Some(&rotation)));
        }
    }
    let op = DenseAttention { scale: 1.0, softcap: None, window: None };
    for head_dim in (1..=256).step_by(15) {
        for half in [false, true] {
            all.extend(
                [2, 9].iter().filter_map(|&n| {
                    metal::attention(&op, [4, n, head_dim], [2, 9], [9 * head_dim; 2], half)
                }),
            );
        }
    }
    let sparse = Sparse::new(2, 3, vec![0; 12].into(), vec![].into(), vec![].into()).unwrap();
    all.push(metal::sparse(&sparse, 1));
    all.extend(SUMS.iter().flat_map(|&sum| metal::norm(5, 1, sum, 1e-6, None)));
    for (biased, norm) in [(false, None), (true, Some(1e-6))] {
        let (strides, start) = ([640, 640], 3);
        let s =
            HeadsShape { heads: 4, kv_heads: 2, positions: 2, head_dim: 64, start, strides, biased, norm };
        all.extend([false, true].map(|half| metal::split_heads(&s, half)));
    }
    for scheme in scheme::ALL {
        let cols = [64, 7][usize::from(scheme.integers().is_none())];
        for cols in [64, cols] {
            let w = Random::new(1).matrix(scheme.name(), 5, cols).packed;
            all.extend([2, 3].map(|n| metal::products(&vec![&w; n])));
        }
    }
    all.extend([false, true].map(|gelu| metal::gated(9, gelu)));
    for head_dim in (64..=256).step_by(64) {
        let rotation = Rotation::new(head_dim, 64, 1).unwrap();
        let codecs = [Codec::Int8, Codec::Int4];
        let pages =
            PagesShape { kv_heads: 2, head_dim, recent: 2, rings: [4, 4], codecs, rotation: &rotation };
        all.extend([1, 9].iter().filter_map(|&n| metal::attention_pages(&op, [4, n], 9, &pages)));
        let (strides, biased, norm) = ([0, 0], false, None);
        let s =
            HeadsShape { heads: 4, kv_heads: 2, positions: 2, head_dim, start: 63, strides, biased, norm };
        all.extend([0..0, 0..1].into_iter().flat_map(|pack| metal::append_pages(&s, &pages, pack)));
    }
    all
}

/// Names and order of arguments, writes, threads and threadgroup memory within Metal's limits; and no kernel that no op
/// launches.
#[test]
fn launches_and_kernels_agree() {
    let shaders = Shaders::new();
    let launches = launches();
    for launch in &launches {
        shaders.check_arguments(launch).unwrap();
    }
    let launched: BTreeSet<&str> = launches.iter().map(|launch| launch.kernel.as_str()).collect();
    let there: BTreeSet<&str> = shaders.kernels().iter().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(launched, there);
    println!("{} kernels, {} launches", there.len(), launches.len());
}

#[test]
fn pointers_stay_in_their_address_spaces() {
    lint::address_spaces(metal::SOURCE).unwrap_or_else(|e| panic!("{e}"));
}

use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng, rngs::StdRng};
use rand_distr::StandardNormal;
use squish_kernels::scheme::trellis::LEVEL_UNIT;
use squish_kernels::scheme::{TCQ2, TCQ3, TCQ4, TCQ5, Trellis};

const SCHEMES: [&Trellis; 4] = [&TCQ2, &TCQ3, &TCQ4, &TCQ5];
type Tile = [f32; TILE_WEIGHTS];

fn gaussian(tiles: usize, sigma: f32, seed: u64) -> Vec<Tile> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..tiles).map(|_| std::array::from_fn(|_| sigma * rng.sample::<f32, _>(StandardNormal))).collect()
}

/// Codes and levels.
fn encode(scheme: &Trellis, targets: &[Tile], importance: &[f32; TILE]) -> (Vec<u8>, Vec<Tile>) {
    let mut viterbi = Viterbi::new(scheme.bits(), scheme.codebook());
    let mut codes = vec![0; targets.len() * viterbi.tile_bytes()];
    let mut levels = vec![[0.0; TILE_WEIGHTS]; targets.len()];
    viterbi.encode(targets, importance, &mut codes, &mut levels);
    (codes, levels)
}

/// What a tile's codes stand for, by the scheme's definition.
fn decode(scheme: &Trellis, code: &[u8]) -> Tile {
    trellis::windows(code, scheme.bits()).map(|window| f32::from(scheme.codebook().level(window)))
}

fn error(targets: &Tile, levels: &Tile, importance: &[f32; TILE]) -> f64 {
    let errors = targets.iter().zip(levels).enumerate();
    errors.map(|(i, (a, b))| f64::from(importance[i % TILE]) * f64::from(a - b).powi(2)).sum()
}

/// The least error of a tile whose ring closes in this class, by a plain forward search in f64.
fn least_error(scheme: &Trellis, targets: &Tile, importance: &[f32; TILE], class: usize) -> f64 {
    let bits = scheme.bits();
    let mut costs: Vec<_> =
        (0..WINDOWS).map(|w| if w % (WINDOWS >> bits) == class { 0.0 } else { f64::MAX }).collect();
    for i in 0..TILE_WEIGHTS {
        let mut next = vec![f64::MAX; WINDOWS];
        for (window, cost) in costs.iter().enumerate() {
            let miss = f64::from(targets[i] - f32::from(scheme.codebook().level(window as u16)));
            let cost = cost + f64::from(importance[i % TILE]) * miss * miss;
            for symbol in 0..1 << bits {
                let next = &mut next[window >> bits | symbol << (WINDOW_BITS - bits)];
                *next = cost.min(*next);
            }
        }
        costs = next;
    }
    costs.into_iter().skip(class).step_by(WINDOWS >> bits).fold(f64::MAX, f64::min)
}

fn columns() -> [f32; TILE] {
    std::array::from_fn(|c| [1.0, 0.25, 3.0, 0.0, 0.7][c % 5])
}

#[test]
fn the_path_is_the_best_that_closes_as_it_does() {
    for scheme in SCHEMES {
        for importance in [[1.0; TILE], columns()] {
            let targets = gaussian(3, 40.0, 1);
            let (codes, levels) = encode(scheme, &targets, &importance);
            for ((targets, levels), code) in targets.iter().zip(&levels).zip(codes.chunks(32 * scheme.bits()))
            {
                let class = usize::from(trellis::window(code, scheme.bits(), 0)) % (WINDOWS >> scheme.bits());
                let found = error(targets, levels, &importance);
                let least = least_error(scheme, targets, &importance, class);
                assert!((least * 0.99999..least * 1.0001).contains(&found), "{found} {least}");
            }
        }
    }
}

#[test]
fn the_ring_closes_nearly_as_well_as_it_could() {
    for scheme in SCHEMES {
        let targets = gaussian(1, 40.0, 2);
        let (_, levels) = encode(scheme, &targets, &[1.0; TILE]);
        let (mut found, mut least) = (0.0, 0.0);
        for (targets, levels) in targets.iter().zip(&levels) {
            let classes = 0..WINDOWS >> scheme.bits();
            found += error(targets, levels, &[1.0; TILE]);
            least += classes
                .map(|class| least_error(scheme, targets, &[1.0; TILE], class))
                .fold(f64::MAX, f64::min);
        }
        assert!(found < 1.005 * least, "{} bits: {found} {least}", scheme.bits());
    }
}

#[test]
fn a_gaussian_comes_out_as_well_as_the_tables_promise() {
    for (scheme, gate) in SCHEMES.into_iter().zip([11.36, 17.04, 22.25, 28.1]) {
        let targets = gaussian(1000, LEVEL_UNIT / scheme.gaussian_scale(), 3);
        let (_, levels) = encode(scheme, &targets, &[1.0; TILE]);
        let signal: f64 = targets.iter().map(|t| error(t, &[0.0; TILE_WEIGHTS], &[1.0; TILE])).sum();
        let noise: f64 = targets.iter().zip(&levels).map(|(t, l)| error(t, l, &[1.0; TILE])).sum();
        let ratio = 10.0 * (signal / noise).log10();
        println!("{} bits: {ratio:.3} dB", scheme.bits());
        assert!(ratio >= gate, "{} bits: {ratio} dB", scheme.bits());
    }
}

#[test]
fn tiles_do_not_depend_on_their_neighbours() {
    let targets = gaussian(2 * lanes() + 3, 40.0, 4);
    for scheme in SCHEMES {
        let together = encode(scheme, &targets, &columns());
        assert_eq!(encode(scheme, &targets, &columns()), together, "the same again");
        for (i, code) in together.0.chunks(32 * scheme.bits()).enumerate() {
            let (alone, levels) = encode(scheme, &targets[i..=i], &columns());
            assert_eq!((&alone[..], levels[0]), (code, together.1[i]));
        }
    }
}

#[test]
fn a_target_that_is_a_path_is_found() {
    for scheme in SCHEMES {
        let code: Vec<u8> = (0..32 * scheme.bits()).map(|i| (37 * i + i * i / 7) as u8).collect();
        let targets = [decode(scheme, &code)];
        assert_eq!(encode(scheme, &targets, &[1.0; TILE]).1, targets);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn codes_decode_to_the_levels(
        bits in 2..6usize, tiles in 1..12usize, sigma in prop::sample::select(vec![0.0, 1e-30, 1.0, 40.0, 1e4, 1e38]),
        columns in prop::array::uniform16(prop::sample::select(vec![0.0, 1e-38, 1e-6, 1.0, 5.0, 1e30])), seed in any::<u64>(),
    ) {
        let scheme = SCHEMES[bits - 2];
        let targets = gaussian(tiles, sigma, seed);
        let targets: Vec<_> = targets.iter().map(|tile| tile.map(|t| t.clamp(f32::MIN, f32::MAX))).collect();
        let (codes, levels) = encode(scheme, &targets, &columns);
        for (code, levels) in codes.chunks(32 * bits).zip(&levels) {
            prop_assert_eq!(&decode(scheme, code), levels);
        }
    }
}

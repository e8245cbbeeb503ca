use super::*;

fn frequencies(theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let rotary = Rotary::new(128, &Rope { theta, scaling }, 32768);
    rotary.frequencies.into_iter().map(f64::from).collect()
}

fn close(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 1e-5
}

#[test]
fn linear_divides_every_frequency() {
    let plain = frequencies(1e6, RopeScaling::Default {});
    assert!((0..64).all(|i| close(plain[i], 1e6f64.powf(-(i as f64) / 64.0))));
    let scaled = frequencies(1e6, RopeScaling::Linear { factor: 8.0 });
    assert!((0..64).all(|i| close(scaled[i], plain[i] / 8.0)));
}

#[test]
fn yarn_leaves_fast_dimensions_and_interpolates_slow_ones() {
    let scaling = RopeScaling::Yarn {
        factor: 4.0,
        original_max_position_embeddings: None,
        attention_factor: None,
        beta_fast: None,
        beta_slow: None,
    };
    let plain = frequencies(1e6, RopeScaling::Default {});
    let rope = Rope { theta: 1e6, scaling: scaling.clone() };
    let scaled = frequencies(1e6, scaling);
    // 128 ln(32768 / (32 * 2 pi)) / (2 ln 1e6) = 23.59, and 39.65 for one turn.
    let (low, high) = (23, 40);
    for i in 0..64 {
        let interpolated = match i {
            _ if i <= low => 0.0,
            _ if i >= high => 1.0,
            _ => (i - low) as f64 / (high - low) as f64,
        };
        let expected = plain[i] * (1.0 - interpolated) + plain[i] / 4.0 * interpolated;
        assert!(close(scaled[i], expected), "{i}");
    }
    assert!((Rotary::new(128, &rope, 32768).amplitude - 1.138_629_436).abs() < 1e-9);
    assert_eq!(rope.context_length(32768), 131_072);
}

#[test]
fn llama3_goes_by_wavelength() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let (plain, scaled) = (frequencies(5e5, RopeScaling::Default {}), frequencies(5e5, scaling));
    let mut seen = [0; 3];
    for (f, found) in plain.into_iter().zip(scaled) {
        let wavelength = TAU / f;
        let (kind, expected) = if wavelength < 8192.0 / 4.0 {
            (0, f)
        } else if wavelength > 8192.0 {
            (1, f / 8.0)
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            (2, (1.0 - smooth) * f / 8.0 + smooth * f)
        };
        seen[kind] += 1;
        assert!(close(found, expected), "{f}: {found}, {expected}");
    }
    assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
}

#[test]
fn an_attention_factor_is_in_the_table() {
    let scaling = |attention_factor| RopeScaling::Yarn {
        factor: 2.0,
        original_max_position_embeddings: Some(64),
        attention_factor,
        beta_fast: Some(32.0),
        beta_slow: Some(1.0),
    };
    let cos = |attention_factor| {
        let rope = Rope { theta: 1e4, scaling: scaling(attention_factor) };
        let table = Rotary::new(8, &rope, 64).table(0, 1, &Device::Cpu).unwrap();
        table.cos.to_vec2::<f32>().unwrap()[0][0]
    };
    assert_eq!(cos(Some(1.5)), 1.5);
    assert!((f64::from(cos(None)) - (0.1 * 2f64.ln() + 1.0)).abs() < 1e-6);
}

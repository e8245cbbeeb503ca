use super::*;
use proptest::prelude::*;

fn sampler(options: GenerationOptions) -> Sampler {
    Sampler::new(&options, 1).unwrap()
}

fn options() -> GenerationOptions {
    GenerationOptions::default()
}

/// Logits whose softmax is `p`.
fn logits(p: &[f64]) -> Vec<f32> {
    p.iter().map(|p| p.ln() as f32).collect()
}

/// How often each token comes up in `n` draws.
fn frequencies(options: GenerationOptions, logits: &[f32], n: usize) -> Vec<f64> {
    let mut sampler = sampler(options);
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits).unwrap() as usize] += 1.0 / n as f64;
    }
    counts
}

/// Standard deviations are at most sqrt(1/4 / 40000) = 0.0025; four of them are allowed.
fn assert_drawn(options: GenerationOptions, logits: &[f32], expected: &[f64]) {
    let got = frequencies(options, logits, 40_000);
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < 0.01, "{got} for {expected}");
        assert!(*expected > 0.0 || *got == 0.0, "a filtered token was drawn");
    }
}

#[test]
fn plain_sampling_follows_the_softmax() {
    let p = [0.5, 0.25, 0.15, 0.1];
    assert_drawn(options(), &logits(&p), &p);
}

#[test]
fn temperature_divides_logits() {
    // p^(1/2) renormalised: 0.8, 0.2 -> 2 : 1.
    assert_drawn(options().temperature(2.0), &logits(&[0.8, 0.2]), &[2.0 / 3.0, 1.0 / 3.0]);
}

#[test]
fn zero_temperature_is_argmax_and_the_first_of_equals() {
    let mut s = sampler(GenerationOptions::greedy());
    assert_eq!(s.sample(&[1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
}

#[test]
fn tiny_temperature_does_not_overflow() {
    let mut s = sampler(options().temperature(1e-300));
    assert_eq!(s.sample(&[-3e38, 1.0, 3e38]).unwrap(), 2);
}

#[test]
fn top_k_keeps_the_largest_and_ties_of_the_last() {
    let l = logits(&[0.1, 0.4, 0.3, 0.2]);
    assert_drawn(options().top_k(2), &l, &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
    let l = logits(&[0.25, 0.5, 0.25]);
    assert_drawn(options().top_k(2), &l, &[0.25, 0.5, 0.25]);
    assert_drawn(options().top_k(9), &l, &[0.25, 0.5, 0.25]);
}

#[test]
fn top_p_keeps_the_token_that_crosses_the_sum() {
    let l = logits(&[0.1, 0.5, 0.15, 0.25]);
    assert_drawn(options().top_p(0.6), &l, &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0]);
    assert_drawn(options().top_p(0.0), &l, &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn top_p_is_a_share_of_what_top_k_left() {
    // Top-k leaves 0.5 and 0.3: shares 0.625 and 0.375, so 0.6 keeps one.
    let l = logits(&[0.5, 0.3, 0.2]);
    assert_drawn(options().top_k(2).top_p(0.6), &l, &[1.0, 0.0, 0.0]);
}

#[test]
fn min_p_is_relative_to_the_likeliest() {
    let l = logits(&[0.5, 0.26, 0.24]);
    assert_drawn(options().min_p(0.5), &l, &[0.5 / 0.76, 0.26 / 0.76, 0.0]);
}

#[test]
fn repetition_penalty_divides_positive_and_multiplies_negative_logits() {
    let mut s = sampler(GenerationOptions::greedy().repetition_penalty(2.0));
    s.observe(&[0, 0, 99]);
    assert_eq!(s.sample(&[3.0, 1.4]).unwrap(), 0, "3 / 2 is still more, counted once");
    assert_eq!(s.sample(&[3.0, 1.6]).unwrap(), 1);
    assert_eq!(s.sample(&[-1.0, -1.9]).unwrap(), 1);
    assert_eq!(s.sample(&[-1.0, -2.1]).unwrap(), 0);
}

#[test]
fn an_extreme_penalty_leaves_something_to_choose() {
    for penalty in [1e-300, 1e300] {
        let mut s = sampler(options().repetition_penalty(penalty));
        s.observe(&[0, 1]);
        assert!(s.sample(&[-5.0, 7.0]).is_ok());
    }
}

#[test]
fn ruled_out_tokens_are_never_drawn() {
    let ninf = f32::NEG_INFINITY;
    assert_drawn(options(), &[ninf, 0.0, ninf, 0.0], &[0.0, 0.5, 0.0, 0.5]);
}

#[test]
fn logits_without_a_softmax_are_an_error() {
    let ninf = f32::NEG_INFINITY;
    for options in [options(), GenerationOptions::greedy()] {
        for bad in [&[1.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[ninf, ninf], &[]] {
            let result = sampler(options.clone()).sample(bad);
            assert!(matches!(result, Err(Error::Logits { .. })), "{bad:?}");
        }
    }
}

#[test]
fn a_seed_fixes_the_draws_on_every_machine() {
    let l = logits(&[0.125; 8]);
    let draw = |seed| -> Vec<u32> {
        let mut s = Sampler::new(&options(), seed).unwrap();
        (0..12).map(|_| s.sample(&l).unwrap()).collect()
    };
    assert_eq!(draw(42), draw(42));
    assert_ne!(draw(42), draw(43));
    assert_eq!(draw(42), [4, 4, 5, 3, 0, 3, 5, 6, 1, 0, 7, 4]);
}

/// The candidates by full sorts, as the definition reads.
fn reference(logits: &[f32], top_k: usize, top_p: f64) -> Vec<u32> {
    let max = logits.iter().cloned().fold(f32::MIN, f32::max);
    let weight = |l: f32| (f64::from(l) - f64::from(max)).exp();
    let mut all: Vec<Candidate> =
        (0u32..).zip(logits).map(|(token, &logit)| Candidate { token, logit }).collect();
    all.sort_by(order);
    let threshold = all[top_k.min(all.len()) - 1].logit;
    all.retain(|c| c.logit >= threshold);
    let total: f64 = all.iter().map(|c| weight(c.logit)).sum();
    let mut before = 0.0;
    all.retain(|c| {
        let keep = before < top_p * total;
        before += weight(c.logit);
        keep
    });
    all.iter().map(|c| c.token).collect()
}

proptest! {
    #[test]
    fn selection_equals_full_sorting(
        logits in prop::collection::vec((-40i32..40).prop_map(|x| x as f32 / 8.0), 1..1500),
        top_k in 1usize..1600,
        top_p in 0.01f64..0.99,
    ) {
        let max = logits.iter().cloned().fold(f32::MIN, f32::max);
        let weight = |c: &Candidate| (f64::from(c.logit) - f64::from(max)).exp();
        let mut got: Vec<Candidate> =
            (0u32..).zip(&logits).map(|(token, &logit)| Candidate { token, logit }).collect();
        keep_top_k(&mut got, top_k);
        keep_top_p(&mut got, top_p, weight);
        let got: Vec<u32> = got.iter().map(|c| c.token).collect();
        prop_assert_eq!(got, reference(&logits, top_k, top_p));
    }

    #[test]
    fn a_large_vocabulary_needs_no_top_k(
        logits in prop::collection::vec((-40i32..40).prop_map(|x| x as f32 / 8.0), 1..3000),
        top_p in 0.01f64..0.99,
    ) {
        let max = logits.iter().cloned().fold(f32::MIN, f32::max);
        let weight = |c: &Candidate| (f64::from(c.logit) - f64::from(max)).exp();
        let mut got: Vec<Candidate> =
            (0u32..).zip(&logits).map(|(token, &logit)| Candidate { token, logit }).collect();
        keep_top_p(&mut got, top_p, weight);
        let got: Vec<u32> = got.iter().map(|c| c.token).collect();
        let all = reference(&logits, usize::MAX, top_p);
        // The two sum in different orders, which may decide the last token differently.
        prop_assert!(got.len().abs_diff(all.len()) <= 1);
        let n = got.len().min(all.len());
        prop_assert_eq!(&got[..n], &all[..n]);
    }
}

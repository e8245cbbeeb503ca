//! Sessions with small caches: going back, snapshots, and the ends of a context.

use squish_kernels::Input;
use squish_models::{Checkpoint, Device, Error, KvMode, Model, Session, SessionOptions, layers::Observer};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

fn models() -> Vec<(&'static str, Model)> {
    let testbed = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/testbed"));
    if !testbed.exists() {
        eprintln!("skipped: {} is absent", testbed.display());
        return Vec::new();
    }
    let load = |name| (name, Model::from_dir(testbed.join(name), &Device::Cpu).unwrap());
    ["qwen2.5-tiny", "qwen3-tiny", "gemma3-tiny"].map(load).into()
}

/// Tokens of no meaning, the same ones every time.
fn tokens(n: usize, seed: u32) -> Vec<u32> {
    (0..n as u32)
        .map(|i| 300 + (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 7919) >> 7) % 7000)
        .collect()
}

fn session(model: &Model, mode: KvMode) -> Session {
    model.session_with(SessionOptions::in_mode(mode)).unwrap()
}

fn logits(session: &mut Session, ids: &[u32]) -> Vec<f32> {
    session.feed(ids).unwrap().to_vec1().unwrap()
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-2, "{what}: {difference}");
}

/// The likeliest tokens that follow.
fn greedy(session: &mut Session, ids: &[u32], count: usize) -> Vec<u32> {
    let mut found = vec![most(&logits(session, ids))];
    while found.len() < count {
        let last = found[found.len() - 1];
        found.push(most(&logits(session, &[last])));
    }
    found
}

fn most(logits: &[f32]) -> u32 {
    let best = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, best) as u32
}

/// The error of a snapshot that is refused. (A session's own text is that of all its numbers.)
fn refusal(model: &Model, path: &Path) -> Error {
    match model.restore(path) {
        Ok(_) => panic!("the snapshot is not refused"),
        Err(error) => error,
    }
}

const SMALL: [KvMode; 3] = [KvMode::F16, KvMode::K8V8, KvMode::K8V4];

/// Numbers are rounded to f16 and to codes, so that a difference of 1e-6 between portions may become one of a step: near is as near as steps are.
#[test]
fn a_history_that_went_back_answers_as_a_cold_one() {
    for (name, model) in models() {
        for mode in SMALL {
            let (prompt, answer, other) = (tokens(700, 1), tokens(400, 2), tokens(90, 3));
            let mut warm = session(&model, mode);
            warm.feed(&prompt).unwrap();
            warm.set_mark();
            warm.feed(&answer).unwrap();
            let copy = warm.clone();
            // A few tokens back, which is always possible; then to the mark.
            assert_eq!(warm.truncate(1095), 1095, "{name} {mode}");
            let mut all = [&prompt[..], &answer[..395]].concat();
            for kept in [1095, 700] {
                assert_eq!(warm.truncate(kept), kept, "{name} {mode}");
                all.truncate(kept);
                all.extend(&other);
                let found = logits(&mut warm, &other);
                let mut cold = session(&model, mode);
                cold.feed(&all[..kept]).unwrap();
                assert_near(&found, &logits(&mut cold, &other), &format!("{name} {mode} {kept}"));
                let tokens = [&mut warm, &mut cold].map(|session| greedy(session, &[most(&found)], 24));
                assert_eq!(tokens[0], tokens[1], "{name} {mode} {kept}: tokens");
                warm = copy.clone();
            }
            // Where it cannot go back, it says so, and goes on right from where it is.
            let kept = warm.truncate(300);
            assert!(kept <= 300);
            let found = logits(&mut warm, &prompt[kept..]);
            let mut cold = session(&model, mode);
            if kept > 0 {
                cold.feed(&prompt[..kept]).unwrap();
            }
            assert_near(&found, &logits(&mut cold, &prompt[kept..]), &format!("{name} {mode} after {kept}"));
        }
    }
}

#[test]
fn a_sliding_window_takes_its_memory_only() {
    for (name, model) in models().into_iter().filter(|(_, model)| model.config().sliding_window.is_some()) {
        let bytes = |mode, n: usize| {
            let mut session = session(&model, mode);
            session.feed(&tokens(n, 1)).unwrap();
            let layers = session.cache().layers();
            let sliding: Vec<usize> =
                layers.iter().filter(|layer| layer.window().is_some()).map(|layer| layer.bytes()).collect();
            assert_eq!(sliding.len(), model.config().num_sliding_layers);
            (sliding.iter().sum::<usize>(), session.cache().bytes())
        };
        for mode in SMALL {
            let (short, long) = (bytes(mode, 640), bytes(mode, 3200));
            println!("{name} {mode}: {short:?} {long:?} bytes");
            assert!(long.0 <= short.0, "{name} {mode}: {short:?} {long:?}");
            assert!(long.1 > short.1);
        }
    }
}

#[test]
fn a_snapshot_goes_on_as_the_session_would() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let models = models();
    for (i, (name, model)) in models.iter().enumerate() {
        for mode in [KvMode::F32, KvMode::F16, KvMode::K8V4] {
            let ids = tokens(600, 1);
            let mut going = session(model, mode);
            going.feed(&ids[..500]).unwrap();
            going.set_mark();
            going.feed(&ids[500..]).unwrap();
            going.save(&path, &ids).unwrap();
            let (mut restored, read) = model.restore(&path).unwrap();
            assert_eq!(
                (read, restored.cache().mode(), restored.cache().bytes()),
                (ids, mode, going.cache().bytes())
            );
            let next = tokens(3, 5);
            assert_eq!(logits(&mut restored, &next), logits(&mut going, &next), "{name} {mode}");
            assert_eq!((restored.truncate(500), going.truncate(500)), (500, 500));
            assert_eq!(logits(&mut restored, &next), logits(&mut going, &next), "{name} {mode}");
            // Another model's.
            let error = refusal(&models[(i + 1) % models.len()].1, &path).to_string();
            assert!(error.contains("of another model") && error.contains("session"), "{error}");
        }
    }
    let Some((_, model)) = models.first() else { return };
    assert!(
        session(model, KvMode::F16).save(&path, &[1]).unwrap_err().to_string().contains("1 tokens for 0")
    );
    // An empty session is one as well.
    session(model, KvMode::K8V4).save(&path, &[]).unwrap();
    assert!(model.restore(&path).unwrap().0.is_empty());
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let Some((_, model)) = models().into_iter().next() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session");
    let mut session = session(&model, KvMode::K8V4);
    let ids = tokens(300, 1);
    session.feed(&ids).unwrap();
    session.save(&path, &ids).unwrap();
    let good = std::fs::read(&path).unwrap();
    let refuse = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let error = refusal(&model, &path);
        assert!(error.to_string().contains("session"), "{error}");
    };
    for cut in [0, 7, 8, 100, 3000, good.len() / 2, good.len() - 1] {
        refuse(&good[..cut]);
    }
    let changed = |from: &str, to: &str| {
        let text: Vec<u8> = from.bytes().collect();
        let at = good.windows(text.len()).position(|window| window == text).unwrap();
        [&good[..at], to.as_bytes(), &good[at + text.len()..]].concat()
    };
    for (from, to) in [
        ("k8v4", "k3v4"),
        ("\\\"format\\\":1", "\\\"format\\\":2"),
        ("\\\"len\\\":300", "\\\"len\\\":299"),
        ("\\\"first\\\":0", "\\\"first\\\":1"),
        ("squish-session", "squash-session"),
    ] {
        refuse(&changed(from, to));
    }
    // Another model of this shape: the probe tells.
    let at = good.windows(5).position(|window| window == b"probe").unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    assert!(at < header);
    let file = safetensors::SafeTensors::deserialize(&good).unwrap();
    let probe = file.tensor("probe").unwrap().data();
    let start = probe.as_ptr() as usize - good.as_ptr() as usize;
    let mut other = good.clone();
    other[start..start + probe.len()].chunks_exact_mut(4).for_each(|v| v[3] ^= 0x80);
    refuse(&other);
    std::fs::write(&path, &good).unwrap();
    assert_eq!(model.restore(&path).unwrap().0.len(), 300);
    assert!(matches!(model.restore(&dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn a_context_has_an_end_and_sessions_do_not_meet() {
    for (name, model) in models() {
        for mode in SMALL {
            let options = SessionOptions { context: Some(200), ..SessionOptions::in_mode(mode) };
            let mut session = model.session_with(options).unwrap();
            let ids = tokens(200, 1);
            assert!(matches!(
                session.feed(&tokens(201, 1)),
                Err(Error::ContextFull { needed: 201, limit: 200 })
            ));
            let first = logits(&mut session, &ids);
            assert!(matches!(session.feed(&[1]), Err(Error::ContextFull { needed: 201, limit: 200 })));
            assert_eq!(session.len(), 200);
            session.reset();
            assert_eq!((session.len(), session.cache().bytes()), (0, 0));
            assert_eq!(logits(&mut session, &ids), first, "{name} {mode}");

            // Two, in turns, give what each gives alone.
            let (a, b) = (tokens(150, 1), tokens(150, 2));
            let alone = [&a, &b].map(|ids| {
                let mut session = model.session_with(options).unwrap();
                ids.chunks(30).map(|ids| logits(&mut session, ids)).collect::<Vec<_>>()
            });
            let mut both = [model.session_with(options).unwrap(), model.session_with(options).unwrap()];
            for i in 0..5 {
                for (which, ids) in [&a, &b].into_iter().enumerate() {
                    let found = logits(&mut both[which], &ids[30 * i..30 * (i + 1)]);
                    assert_eq!(found, alone[which][i], "{name} {mode}");
                }
            }
        }
        let limit = model.config().context_length;
        for context in [0, limit + 1] {
            let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
            assert!(matches!(model.session_with(options), Err(Error::Context { .. })));
        }
    }
}

/// Counts what it is shown.
#[derive(Debug, Default)]
struct Counter(AtomicUsize);

impl Observer for Counter {
    fn input(&self, _: &str, _: &Input) -> candle_core::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Who wants to see the inputs of linears sees those of a single token, too.
#[test]
fn observers_see_what_is_decoded() {
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/squish-tiny-sqint2");
    let counter = Arc::new(Counter::default());
    let mut checkpoint = Checkpoint::open(bundled).unwrap();
    checkpoint.observe(Some(counter.clone()));
    let model = Model::from_checkpoint(&checkpoint, &Device::Cpu).unwrap();
    assert!(!model.layers().decodes_without_tensors());
    model.session().advance(&[1]).unwrap();
    // Seven in each block, and the head.
    assert_eq!(counter.0.load(Ordering::Relaxed), 7 * model.config().num_hidden_layers + 1);
}

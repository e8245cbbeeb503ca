//! Downloads from a stand-in hub.

mod samples;
mod standin;

use proptest::prelude::*;
use squish_hub::{
    Error, Hub,
    hub::{Silent, Timing, Transfer},
};
use standin::{COMMIT, Standin};
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

const REPOSITORY: &str = "tests/tiny";

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |seed: u32| (0..20_000u32).map(|i| (i.wrapping_mul(seed) >> 7) as u8).collect::<Vec<u8>>();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    vec![
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.to_vec()),
        ("model-1.safetensors", samples::safetensors(&bytes(2654435761))),
        ("model-2.safetensors", samples::safetensors(&bytes(2246822519))),
        ("pytorch_model.bin", samples::pickle(2, "posix", "system")),
        ("logo.png", b"\x89PNG\r\n\x1a\n".to_vec()),
    ]
}

fn hub(standin: &Standin, cache: &Path) -> Hub {
    let mut hub = Hub::new(&standin.address, cache);
    hub.reserve = 0;
    let (connect, pause) = (Duration::from_secs(5), Duration::from_millis(1));
    hub.timing = Timing {
        connect,
        body: Duration::from_secs(5),
        attempts: 3,
        pause,
        longest_pause: Duration::from_secs(2),
    };
    hub
}

/// Whether a directory holds the files, byte for byte, and none of the others.
fn check(dir: &Path) {
    for (name, bytes) in files() {
        let found = std::fs::read(dir.join(name)).ok();
        let wanted = (!name.ends_with(".bin") && !name.ends_with(".png")).then_some(bytes);
        assert!(found == wanted, "{name}");
    }
}

#[test]
fn a_repository_is_pulled_once() {
    let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&standin, cache.path());
    hub.token = Some("secret".into());
    assert!(hub.cached(REPOSITORY, "main").is_none());
    let pulled = hub.pull(REPOSITORY, "main", &Silent).unwrap();
    check(&pulled.dir);
    assert_eq!((pulled.commit.as_str(), pulled.skipped), (COMMIT, vec!["pytorch_model.bin".to_string()]));
    assert_eq!(hub.cached(REPOSITORY, "main").unwrap(), pulled.dir);
    assert_eq!(hub.cached(REPOSITORY, COMMIT).unwrap(), pulled.dir);
    let log = standin.log.lock().unwrap().clone();
    assert!(log.iter().all(|line| !line.contains(".bin")), "{log:?}");
    // The token goes to the hub, and not to the storage it redirects to.
    for line in &log {
        assert_eq!(line.contains("secret"), !line.starts_with("/storage/"), "{line}");
    }
    // Again: nothing but the list is asked for; offline, not even that.
    hub.pull(REPOSITORY, "main", &Silent).unwrap();
    assert_eq!(standin.log.lock().unwrap().len(), log.len() + 1);
    hub.offline = true;
    check(&hub.pull(REPOSITORY, "main", &Silent).unwrap().dir);
    assert_eq!(standin.log.lock().unwrap().len(), log.len() + 1);
    assert!(matches!(hub.pull("tests/other", "main", &Silent), Err(Error::Offline { .. })));
    // What becomes part of paths is looked at, wherever it is from.
    for offline in [true, false] {
        hub.offline = offline;
        let error = hub.pull(REPOSITORY, "../../../x", &Silent).unwrap_err();
        assert!(matches!(error, Error::Repository { .. }), "{error}");
    }
    assert_eq!(standin.log.lock().unwrap().len(), log.len() + 1);
}

#[test]
fn failures_that_pass() {
    for (statuses, retry_after, least) in [(vec![503, 500], None, 0), (vec![429], Some(1), 1)] {
        let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
        *standin.faults.lock().unwrap() = standin::Faults { statuses, retry_after, ..Default::default() };
        let start = Instant::now();
        check(&hub(&standin, cache.path()).pull(REPOSITORY, "main", &Silent).unwrap().dir);
        assert!(start.elapsed() >= Duration::from_secs(least));
    }
}

#[test]
fn failures_that_stay() {
    let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let hub = hub(&standin, cache.path());
    let fail = |faults| {
        *standin.faults.lock().unwrap() = faults;
        let error = hub.pull(REPOSITORY, "main", &Silent).unwrap_err();
        assert!(hub.cached(REPOSITORY, "main").is_none() && hub.cached(REPOSITORY, COMMIT).is_none());
        error
    };
    let none = standin::Faults::default;
    let error = fail(standin::Faults { token: Some("x".into()), ..none() });
    assert!(matches!(error, Error::Unauthorised { token: false, .. }), "{error}");
    let error = fail(standin::Faults { missing: true, ..none() });
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = fail(standin::Faults { statuses: vec![500; 100], ..none() });
    assert!(matches!(error, Error::Hub { .. }), "{error}");
    let error = fail(standin::Faults { statuses: vec![403], ..none() });
    assert!(matches!(error, Error::Unauthorised { .. }), "{error}");
    let error = fail(standin::Faults { statuses: vec![404], ..none() });
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = fail(standin::Faults { statuses: vec![418], ..none() });
    assert!(error.to_string().contains("answers 418"), "{error}");
    let error = fail(standin::Faults { corrupt: true, ..none() });
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    let full = Hub { reserve: u64::MAX, ..hub.clone() };
    let error = full.pull(REPOSITORY, "main", &Silent).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    // And after all of that it works, with nothing wrong left behind.
    *standin.faults.lock().unwrap() = none();
    check(&hub.pull(REPOSITORY, "main", &Silent).unwrap().dir);
}

#[test]
fn a_hub_that_is_not_there() {
    let cache = tempfile::tempdir().unwrap();
    let error = hub(&Standin::nowhere(), cache.path()).pull(REPOSITORY, "main", &Silent).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }), "{error}");
}

#[test]
fn a_hub_that_does_not_answer() {
    let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let mut hub = hub(&standin, cache.path());
    hub.timing.connect = Duration::from_millis(300);
    standin.faults.lock().unwrap().hang = 100;
    let (start, error) = (Instant::now(), hub.pull(REPOSITORY, "main", &Silent).unwrap_err());
    assert!(matches!(error, Error::Hub { .. }) && start.elapsed() < Duration::from_secs(10), "{error}");
    // Once it does, it is asked again.
    standin.faults.lock().unwrap().hang = 1;
    check(&hub.pull(REPOSITORY, "main", &Silent).unwrap().dir);
}

#[test]
fn a_hub_that_asks_for_patience_gets_a_minute_at_most() {
    let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let faults = standin::Faults { statuses: vec![429], retry_after: Some(1 << 40), ..Default::default() };
    *standin.faults.lock().unwrap() = faults;
    let mut hub = hub(&standin, cache.path());
    hub.timing.longest_pause = Duration::from_millis(200);
    let start = Instant::now();
    check(&hub.pull(REPOSITORY, "main", &Silent).unwrap().dir);
    assert!((Duration::from_millis(200)..Duration::from_secs(20)).contains(&start.elapsed()));
}

#[test]
fn a_slow_hub_is_waited_for_as_long_as_something_comes() {
    let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    standin.faults.lock().unwrap().slow = Some(Duration::from_millis(40));
    let mut hub = hub(&standin, cache.path());
    hub.timing.body = Duration::from_millis(300);
    check(&hub.pull(REPOSITORY, "main", &Silent).unwrap().dir);
    let resumed = standin.log.lock().unwrap().iter().any(|line| line.contains("Some("));
    assert!(resumed, "every part took longer than it may, so the rest was asked for");
}

#[test]
fn dangerous_repositories_are_refused() {
    let pickle = samples::pickle(2, "posix", "system");
    let config = ("config.json", b"{}".to_vec());
    for files in [
        vec![config.clone(), ("pytorch_model.bin", pickle.clone())],
        vec![config.clone()],
        vec![config, ("model.safetensors", pickle)],
    ] {
        let (standin, cache) = (Standin::new(&files), tempfile::tempdir().unwrap());
        let hub = hub(&standin, cache.path());
        let error = hub.pull(REPOSITORY, "main", &Silent).unwrap_err();
        assert!(matches!(error, Error::Unsafe { .. }), "{error}");
        assert!(hub.cached(REPOSITORY, "main").is_none());
    }
}

#[test]
fn two_at_once() {
    let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope
                .spawn(|| check(&hub(&standin, cache.path()).pull(REPOSITORY, "main", &Silent).unwrap().dir));
        }
    });
    let storage = standin.log.lock().unwrap().iter().filter(|line| line.starts_with("/storage/")).count();
    assert_eq!(storage, 2, "each weights file is fetched once");
}

/// Ends the download after so many bytes.
struct Until(AtomicU64);

impl Transfer for Until {
    fn cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) < 2
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    /// Connections cut anywhere, with and without ranges: the files are what they should be.
    #[test]
    fn cut_connections(mut cuts in proptest::collection::vec(0usize..22_000, 0..6), ignore_ranges: bool) {
        if ignore_ranges {
            // Without ranges nothing is kept, so only so many attempts may fail in a row.
            cuts.truncate(2);
        }
        // Nothing at all, three times in a row, is a hub that does not work.
        cuts.iter_mut().for_each(|cut| *cut = (*cut).max(1));
        let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
        *standin.faults.lock().unwrap() = standin::Faults { cuts, ignore_ranges, ..Default::default() };
        check(&hub(&standin, cache.path()).pull(REPOSITORY, "main", &Silent).unwrap().dir);
    }

    /// Interrupted anywhere, and the part on disk damaged or not: nothing counts as complete, and the next call ends it.
    #[test]
    fn interrupted(after in 3u64..40, damage: bool) {
        let (standin, cache) = (Standin::new(&files()), tempfile::tempdir().unwrap());
        let hub = hub(&standin, cache.path());
        if hub.pull(REPOSITORY, "main", &Until(AtomicU64::new(after))).is_err() {
            prop_assert!(hub.cached(REPOSITORY, "main").is_none());
        }
        let blobs = cache.path().join("models--tests--tiny/blobs");
        for file in std::fs::read_dir(blobs).into_iter().flatten().flatten() {
            if damage && file.path().extension().is_some_and(|e| e == "incomplete") {
                let mut bytes = std::fs::read(file.path()).unwrap();
                bytes.iter_mut().for_each(|b| *b ^= 0x55);
                std::fs::write(file.path(), bytes).unwrap();
            }
        }
        check(&hub.pull(REPOSITORY, "main", &Silent).unwrap().dir);
    }
}

//! Repositories that come one weights file after the other, from a stand-in hub.

mod samples;
mod standin;

use proptest::prelude::*;
use squish_hub::{
    Error, Hub,
    hub::{Silent, Timing, Transfer},
};
use standin::Standin;
use std::{fs, path::Path, time::Duration};

const REPOSITORY: &str = "tests/tiny";
const FIRST: &str = "model-1.safetensors";

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |seed: u32| (0..300_000u32).map(|i| (i.wrapping_mul(seed) >> 7) as u8).collect::<Vec<u8>>();
    let index = format!(r#"{{"weight_map": {{"a": "{FIRST}", "b": "model-2.safetensors"}}}}"#);
    vec![
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.into_bytes()),
        (FIRST, samples::safetensors(&bytes(2654435761))),
        ("model-2.safetensors", samples::safetensors(&bytes(2246822519))),
        // No part of the checkpoint: the index does not name it.
        ("consolidated.safetensors", samples::safetensors(&bytes(7))),
    ]
}

fn hub(standin: &Standin, cache: &Path) -> Hub {
    let mut hub = Hub::new(&standin.address, cache);
    hub.reserve = 0;
    let (connect, pause) = (Duration::from_secs(5), Duration::from_millis(1));
    hub.timing = Timing { connect, body: connect, attempts: 3, pause, longest_pause: pause };
    hub
}

fn bytes_of(name: &str) -> Vec<u8> {
    files().into_iter().find(|(file, _)| *file == name).unwrap().1
}

/// Bytes that the files of a directory take on the disk, links not counted.
#[cfg(unix)]
fn on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata().unwrap() {
        found if found.is_dir() => on_disk(&entry.path()),
        found => found.blocks() * 512,
    };
    entries.map(of).sum()
}

#[test]
fn an_outline_has_headers_and_takes_no_room() {
    let (standin, dir) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let staging =
        hub(&standin, &dir.path().join("cache")).stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
    let (outline, weights) = staging.outline(&Silent).unwrap();
    let names: Vec<_> = weights.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, [FIRST, "model-2.safetensors"]);
    assert_eq!(outline.file_name().unwrap(), standin::COMMIT);
    let (found, whole) = (fs::read(outline.join(FIRST)).unwrap(), bytes_of(FIRST));
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    assert!(found.len() == whole.len() && found[..header] == whole[..header]);
    assert!(found[header..].iter().all(|byte| *byte == 0));
    #[cfg(unix)]
    assert!(on_disk(dir.path()) < 100_000, "{}", on_disk(dir.path()));
    assert!(!dir.path().join("cache").exists());

    // One file after the other.
    for file in &weights {
        assert_eq!(staging.missing(file), bytes_of(&file.name).len() as u64);
        let path = staging.bring(file, &Silent).unwrap();
        assert!(path.ends_with(&file.name) && fs::read(&path).unwrap() == bytes_of(&file.name));
        assert_eq!(staging.missing(file), 0);
        staging.discard(file).unwrap();
        staging.discard(file).unwrap();
        assert!(!path.exists());
        #[cfg(unix)]
        assert!(on_disk(dir.path()) < 100_000);
    }
}

#[test]
fn what_the_shared_cache_has_is_used_and_stays() {
    let (standin, dir) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let hub = hub(&standin, &dir.path().join("cache"));
    let pulled = hub.pull(REPOSITORY, "main", &Silent).unwrap();
    let asked = standin.asked("/storage/");
    let staging = hub.stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
    let (_, weights) = staging.outline(&Silent).unwrap();
    assert!(weights.iter().all(|file| staging.missing(file) == 0), "room is asked for what is only linked");
    let headers = standin.asked("/storage/") - asked;
    for file in &weights {
        assert_eq!(fs::read(staging.bring(file, &Silent).unwrap()).unwrap(), bytes_of(&file.name));
        staging.discard(file).unwrap();
    }
    assert_eq!(standin.asked("/storage/"), asked + headers, "weights are fetched again");
    assert_eq!(fs::read(pulled.dir.join(FIRST)).unwrap(), bytes_of(FIRST));
}

#[test]
fn what_the_shared_cache_has_is_looked_at() {
    let (standin, dir) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let hub = hub(&standin, &dir.path().join("cache"));
    let pulled = hub.pull(REPOSITORY, "main", &Silent).unwrap();
    // Of the same length, and other bytes.
    let mut damaged = bytes_of(FIRST);
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(pulled.dir.join(FIRST).canonicalize().unwrap(), damaged).unwrap();
    let staging = hub.stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
    let path = staging.bring(staging.file(FIRST).unwrap(), &Silent).unwrap();
    assert!(fs::read(path).unwrap() == bytes_of(FIRST));
}

#[test]
fn an_outline_ends_when_it_is_told_to() {
    struct Cancelled;
    impl Transfer for Cancelled {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let (standin, dir) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let staging = hub(&standin, dir.path()).stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
    for name in ["config.json", "model.safetensors.index.json"] {
        staging.small(name, &Silent).unwrap();
    }
    assert!(matches!(staging.outline(&Cancelled), Err(Error::Cancelled)));
    assert_eq!(standin.asked("/storage/"), 0);
}

#[test]
fn a_whole_repository_settles_in_a_directory() {
    let (standin, dir) = (Standin::new(&files()), tempfile::tempdir().unwrap());
    let staging =
        hub(&standin, &dir.path().join("cache")).stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
    let out = dir.path().join("out");
    staging.settle(&staging.whole(&Silent).unwrap(), &out).unwrap();
    fs::remove_dir_all(dir.path().join("work")).unwrap();
    for (name, bytes) in files() {
        assert!(fs::read(out.join(name)).unwrap() == bytes, "{name}");
    }
}

#[test]
fn files_of_another_commit_are_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (cache, work) = (dir.path().join("cache"), dir.path().join("work"));
    let standin = Standin::new(&files());
    let staging = hub(&standin, &cache).stage(REPOSITORY, "main", &work).unwrap();
    let (_, weights) = staging.outline(&Silent).unwrap();
    staging.bring(&weights[0], &Silent).unwrap();
    let mut other = files();
    other[2].1 = samples::safetensors(&[1, 2, 3, 4]);
    standin
        .state
        .lock()
        .unwrap()
        .repositories
        .insert("*".into(), other.into_iter().map(|(name, bytes)| (name.to_string(), bytes)).collect());
    hub(&standin, &cache).stage(REPOSITORY, "main", &work).unwrap();
    let blob = work.join("models--tests--tiny/blobs").join(&weights[0].etag);
    assert!(!blob.exists());
}

#[test]
fn wrong_headers_and_indices() {
    let header = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let mut index = files();
    index[1].1 = br#"{"weight_map": {"a": "../other.safetensors"}}"#.to_vec();
    let mut empty = files();
    empty[1].1 = br#"{"weight_map": {}}"#.to_vec();
    let mut lies = files();
    lies[2].1 = header(1 << 60);
    let mut short = files();
    short[2].1 = b"abc".to_vec();
    for (files, expected) in
        [(index, "no such"), (empty, "not an index"), (lies, "longer"), (short, "ends early")]
    {
        let (standin, dir) = (Standin::new(&files), tempfile::tempdir().unwrap());
        let staging = hub(&standin, dir.path()).stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
        let error = staging.outline(&Silent).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_pickle_that_comes_as_weights_is_refused() {
    let mut files = files();
    // Its first bytes are a header; what comes later is looked at when it is there.
    files[2].1 = samples::pickle(2, "posix", "system");
    let (standin, dir) = (Standin::new(&files), tempfile::tempdir().unwrap());
    let staging = hub(&standin, dir.path()).stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
    let file = staging.file(FIRST).unwrap();
    let error = staging.bring(file, &Silent).unwrap_err();
    assert!(matches!(error, Error::Unsafe { .. }), "{error}");
    assert_eq!(staging.missing(file), file.size.unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    /// Headers of any length come through connections that are cut anywhere, with and without ranges.
    #[test]
    fn headers_through_cut_connections(cuts in proptest::collection::vec(1usize..900_000, 0..3), padding in 0usize..600_000, ignore_ranges: bool) {
        let mut files = files();
        let (length, rest) = files[2].1.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let header = [header, &vec![b' '; padding]].concat();
        files[2].1 = [&(header.len() as u64).to_le_bytes()[..], &header, data].concat();
        let (standin, dir) = (Standin::new(&files), tempfile::tempdir().unwrap());
        let staging = hub(&standin, dir.path()).stage(REPOSITORY, "main", &dir.path().join("work")).unwrap();
        // The index comes whole, and the headers through cuts.
        for name in ["config.json", "model.safetensors.index.json"] {
            staging.small(name, &Silent).unwrap();
        }
        *standin.faults.lock().unwrap() = standin::Faults { cuts, ignore_ranges, ..Default::default() };
        let (outline, _) = staging.outline(&Silent).unwrap();
        let found = fs::read(outline.join(FIRST)).unwrap();
        prop_assert!(found.len() == files[2].1.len() && found[..8 + header.len()] == files[2].1[..8 + header.len()]);
    }
}

//! Publishing to a stand-in hub.

mod standin;

use proptest::prelude::*;
use squish_hub::{
    Error, Hub,
    hub::{LocalFile, Push, Silent, Timing},
};
use standin::{Standin, upload::Uploads};
use std::{collections::BTreeMap, path::Path, time::Duration};

const REPOSITORY: &str = "someone/squished";

fn contents() -> BTreeMap<String, Vec<u8>> {
    let bytes = |seed: u32| (0..30_000u32).map(|i| (i.wrapping_mul(seed) >> 9) as u8).collect::<Vec<u8>>();
    let file = |name: &str, bytes| (name.to_string(), bytes);
    BTreeMap::from([
        file("config.json", b"{}".to_vec()),
        file("README.md", b"# page\n".to_vec()),
        file("model-1.safetensors", bytes(2654435761)),
        file("model-2.safetensors", bytes(2246822519)),
        file("empty.txt", Vec::new()),
    ])
}

fn write(dir: &Path, contents: &BTreeMap<String, Vec<u8>>) -> Vec<LocalFile> {
    let file = |(name, bytes): (&String, &Vec<u8>)| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        LocalFile { name: name.clone(), path }
    };
    contents.iter().map(file).collect()
}

fn hub(standin: &Standin) -> Hub {
    let mut hub = Hub::new(&standin.address, "/nowhere");
    hub.token = Some("secret".into());
    let (connect, pause) = (Duration::from_secs(5), Duration::from_millis(1));
    hub.timing = Timing { connect, body: connect, attempts: 3, pause, longest_pause: pause };
    hub
}

fn push(hub: &Hub, files: &[LocalFile]) -> Result<(Push, Option<String>), Error> {
    let plan = hub.plan_push(REPOSITORY, files)?;
    let commit = hub.push(&plan, false, "test", &Silent)?;
    Ok((plan, commit))
}

fn there(standin: &Standin) -> BTreeMap<String, Vec<u8>> {
    standin.state.lock().unwrap().repositories.get(REPOSITORY).cloned().unwrap_or_default()
}

#[test]
fn fresh_then_nothing_to_do_then_only_what_changed() {
    for part in [None, Some(7_000), Some(30_000), Some(1 << 20)] {
        let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
        standin.faults.lock().unwrap().uploads.part = part;
        let (hub, mut contents) = (hub(&standin), contents());
        let files = write(dir.path(), &contents);
        let (plan, commit) = push(&hub, &files).unwrap();
        assert!(plan.create && plan.same.is_empty() && plan.sent().count() == files.len());
        assert_eq!(commit, Some("f".repeat(40)));
        assert!(there(&standin) == contents, "{part:?}");
        // Addresses of the storage carry their own permission; the stand-in refuses a token there.
        let log = standin.log.lock().unwrap().clone();
        assert!(log.iter().any(|line| line.starts_with("PUT /upload/")));

        let (plan, commit) = push(&hub, &files).unwrap();
        assert!(plan.is_done() && commit.is_none());
        assert_eq!(standin.log.lock().unwrap().len(), log.len() + 1, "only the list is asked for");

        contents.insert("config.json".into(), b"{\"a\": 1}".to_vec());
        contents.remove("model-2.safetensors");
        let files = write(dir.path(), &contents);
        let (plan, _) = push(&hub, &files).unwrap();
        assert_eq!(plan.sent().collect::<Vec<_>>(), [("config.json", 8)]);
        assert_eq!(plan.removed, ["model-2.safetensors"]);
        assert!(there(&standin) == contents);
    }
}

#[test]
fn a_plan_writes_nothing() {
    let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
    let plan = hub(&standin).plan_push(REPOSITORY, &write(dir.path(), &contents())).unwrap();
    assert!(plan.create && !plan.is_done());
    assert!(standin.log.lock().unwrap().iter().all(|line| line.starts_with("/api/models/")));
}

#[test]
fn failures_that_pass() {
    let statuses = vec![
        ("/create", 503),
        ("/preupload", 429),
        ("/batch", 500),
        ("/upload/", 503),
        ("/verify", 502),
        ("/commit/", 504),
    ];
    let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
    standin.faults.lock().unwrap().uploads = Uploads { statuses, cuts: vec![100], ..Uploads::default() };
    push(&hub(&standin), &write(dir.path(), &contents())).unwrap();
    assert!(there(&standin) == contents());
}

#[test]
fn a_commit_whose_answer_is_lost_is_not_made_twice() {
    let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
    standin.faults.lock().unwrap().uploads.lost = vec!["/create", "/commit/"];
    push(&hub(&standin), &write(dir.path(), &contents())).unwrap();
    assert!(there(&standin) == contents());
    assert_eq!(standin.asked("POST /api/models/someone/squished/commit"), 1);
    assert_eq!(standin.asked("POST /api/repos/create"), 2, "the second time it is there");
}

#[test]
fn failures_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let files = write(dir.path(), &contents());
    for (at, status) in
        [("/create", 403), ("/preupload", 401), ("/upload/", 403), ("/commit/", 403), ("/batch", 400)]
    {
        let standin = Standin::with(&[]);
        standin.faults.lock().unwrap().uploads.statuses = vec![(at, status)];
        let hub = hub(&standin);
        let error = push(&hub, &files).unwrap_err();
        match status {
            400 => assert!(error.to_string().contains("not today"), "{error}"),
            _ => assert!(matches!(error, Error::WriteDenied { token: true, .. }), "{error}"),
        }
        assert!(there(&standin).is_empty(), "{at}: half a checkpoint");
        push(&hub, &files).unwrap();
        assert!(there(&standin) == contents());
    }
    let standin = Standin::with(&[]);
    standin.faults.lock().unwrap().uploads.statuses = vec![("/commit/", 500); 9];
    let error = push(&hub(&standin), &files).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }) && there(&standin).is_empty(), "{error}");
}

#[test]
fn a_large_file_within_the_commit_is_refused() {
    let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
    // Sparse: no byte of it is written.
    let path = dir.path().join("tokenizer.json");
    std::fs::File::create(&path).unwrap().set_len((16 << 20) + 1).unwrap();
    let error = push(&hub(&standin), &[LocalFile { name: "tokenizer.json".into(), path }]).unwrap_err();
    assert!(matches!(error, Error::Hub { .. }) && error.to_string().contains("tokenizer.json"), "{error}");
    assert_eq!(standin.asked("POST /api/models/someone/squished/commit"), 0);
}

#[test]
fn without_a_token_nothing_is_asked_for() {
    let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
    let mut hub = hub(&standin);
    hub.token = None;
    let error = push(&hub, &write(dir.path(), &contents())).unwrap_err();
    assert!(matches!(error, Error::WriteDenied { token: false, .. }), "{error}");
    assert!(standin.log.lock().unwrap().is_empty());
    hub.token = Some("another".into());
    standin.faults.lock().unwrap().token = Some("secret".into());
    let error = push(&hub, &write(dir.path(), &contents())).unwrap_err();
    assert!(matches!(error, Error::WriteDenied { token: true, .. }), "{error}");
}

#[test]
fn what_has_arrived_is_not_sent_again() {
    let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
    let (hub, files) = (hub(&standin), write(dir.path(), &contents()));
    standin.faults.lock().unwrap().uploads.statuses = vec![("/commit/", 403)];
    push(&hub, &files).unwrap_err();
    assert_eq!(standin.asked("PUT /upload/"), 2);
    push(&hub, &files).unwrap();
    assert_eq!(standin.asked("PUT /upload/"), 2);
    assert!(there(&standin) == contents());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]

    /// Connections cut anywhere while large files are sent, in parts or as a whole: a reader sees all files or none, and pushing again
    /// ends it.
    #[test]
    fn cut_connections(cuts in proptest::collection::vec(0usize..31_000, 0..12), part in proptest::option::of(1_000usize..40_000)) {
        let (standin, dir) = (Standin::with(&[]), tempfile::tempdir().unwrap());
        let (hub, files) = (hub(&standin), write(dir.path(), &contents()));
        let most = cuts.len() + 1;
        standin.faults.lock().unwrap().uploads = Uploads { cuts, part, ..Uploads::default() };
        let mut pushes = 0;
        while push(&hub, &files).is_err() {
            prop_assert!(there(&standin).is_empty());
            pushes += 1;
            prop_assert!(pushes <= most);
        }
        prop_assert!(there(&standin) == contents());
    }
}

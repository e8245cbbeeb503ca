//! Originals that are squished while they are downloaded, from a stand-in hub.

#[path = "support/from_hub.rs"]
mod from_hub;
mod support;

use from_hub::*;
use std::{fs, path::Path, time::Duration};
use support::*;

const NAME: &str = "qwen2.5:0.5b-int4";
const MODEL: &str = "home/models/qwen2.5-0.5b-int4";

/// A model in four files of a megabyte and more.
fn sharded() -> Source {
    Source::new(&Spec {
        hidden: 256,
        intermediate: 768,
        layers: 4,
        vocab: 2048,
        shards: 4,
        ..Spec::default()
    })
}

/// A model in three files of some kilobytes.
fn small() -> Source {
    Source::new(&Spec { shards: 3, ..Spec::default() })
}

fn tokenizer(dir: &Path) {
    fs::write(dir.join("tokenizer.json"), tokenizer_json(96)).unwrap();
}

/// The names in the store, hidden ones too, but for locks.
fn stored(hub: &WithHub) -> Vec<String> {
    let entries = fs::read_dir(hub.path("home/models")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.ends_with(".lock"));
    names.sort();
    names
}

#[test]
fn the_result_is_that_of_the_whole_original() {
    let hub = WithHub::prepared(&small(), tokenizer);
    let streamed = hub.json(&["pull", NAME]);
    assert_eq!(streamed["how"], "squished");
    assert_eq!(stored(&hub), ["qwen2.5-0.5b-int4"]);
    assert!(!hub.path("hf").exists(), "the shared cache is left alone");

    let kept = hub.elsewhere();
    assert_eq!(kept.json(&["pull", NAME, "--keep-source"])["how"], "squished");
    assert!(kept.path("hf/hub").exists());
    let [a, b] = [&hub, &kept].map(|hub| read_dir(&hub.path(MODEL)));
    for (one, other) in a.iter().zip(&b) {
        assert!(one == other, "{} and {} differ", one.0, other.0);
    }
    assert_eq!(a.len(), b.len());
    assert!(
        a.iter().any(|(name, _)| name == "squish_origin.json")
            && a.iter().any(|(name, _)| name == "tokenizer.json")
    );

    // From the cache, offline, it is the same but for the origin.
    let offline = kept
        .command(&["pull", "qwen2.5:0.5b", "--recipe", "int4", "--out", "again", "--json"])
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert_eq!(json(offline)["how"], "squished");
    for (name, bytes) in a.iter().filter(|(name, _)| name != "squish_origin.json") {
        assert!(fs::read(kept.path("again").join(name)).unwrap() == *bytes, "{name}");
    }
}

#[test]
fn what_is_there_is_not_asked_for_again() {
    let hub = WithHub::new(&small());
    hub.json(&["pull", NAME]);
    let asked = hub.standin.log.lock().unwrap().len();
    assert_eq!(hub.json(&["pull", NAME])["how"], "there");
    assert_eq!(hub.standin.log.lock().unwrap().len(), asked);
    // Another name for the same contents and recipe: the list is asked for, and nothing else.
    let other = hub.json(&["pull", "hf:someone/copy", "--recipe", "int4"]);
    assert_eq!(other["how"], "shared");
    assert_eq!(hub.standin.log.lock().unwrap().len(), asked + 1);
    assert!(other["dir"].as_str().unwrap().ends_with("models/someone--copy-int4"));
    assert!(hub.call(&["rm", NAME]).status.success());
    assert!(hub.call(&["inspect", "home/models/someone--copy-int4"]).status.success());
    // Another recipe is another result, also from a file.
    fs::write(hub.path("mine.toml"), EVERYTHING).unwrap();
    let mine = ["pull", "hf:someone/copy", "--recipe", "mine.toml"];
    let made = hub.json(&mine);
    assert!(made["how"] == "squished" && made["dir"].as_str().unwrap().ends_with("someone--copy-everything"));
    assert_eq!(hub.json(&mine)["how"], "there");
    fs::write(hub.path("mine.toml"), EVERYTHING.replace("seed = 3", "seed = 4")).unwrap();
    assert_refusal(&hub.call(&mine), &["not empty"]);
}

#[test]
fn a_directory_that_is_given_is_for_one_model() {
    let hub = WithHub::new(&small());
    let pull = |name: &str| hub.call(&["pull", name, "--recipe", "int4", "--out", "D", "--json"]);
    assert_eq!(json(pull("hf:a/x"))["how"], "squished");
    assert_eq!(json(pull("hf:A/X"))["how"], "there");
    let asked = hub.standin.log.lock().unwrap().len();
    assert_refusal(&pull("hf:b/y"), &["not empty"]);
    assert_eq!(hub.standin.log.lock().unwrap().len(), asked, "it is refused before anything is fetched");
    // What is shared is known by its own name, and the other keeps its own.
    hub.json(&["pull", "hf:a/x", "--recipe", "int4"]);
    let shared = ["pull", "hf:b/y", "--recipe", "int4", "--out", "E"];
    assert_eq!(hub.json(&shared)["how"], "shared");
    assert_eq!(hub.json(&shared)["how"], "there");
    let origin = |dir: &str| fs::read_to_string(hub.path(dir).join("squish_origin.json")).unwrap();
    assert!(origin("E").contains("b/y") && origin("home/models/a--x-int4").contains("a/x"));
}

/// What a process that was killed at the wrong moment has left goes with the next call.
#[test]
fn what_is_left_over_goes() {
    let hub = WithHub::new(&small());
    hub.json(&["pull", NAME]);
    let left = |what: &str| {
        let dir = hub.path("home/models").join(format!(".qwen2.5-0.5b-int4.{what}"));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config.json"), "{}").unwrap();
    };
    let recipe = ["pull", "qwen2.5:0.5b", "--recipe", "int4"];
    for call in [&["pull", NAME][..], &recipe] {
        left("partial");
        assert_eq!(hub.json(call)["how"], "there");
        assert_eq!(stored(&hub), ["qwen2.5-0.5b-int4"]);
    }
    fs::remove_dir_all(hub.path(MODEL)).unwrap();
    left("partial-k1LLed");
    hub.json(&["pull", NAME]);
    assert_eq!(stored(&hub), ["qwen2.5-0.5b-int4"]);
}

/// Other programs bring a part of a repository into the cache.
#[cfg(unix)]
#[test]
fn a_snapshot_without_its_tokenizer_is_not_whole() {
    let hub = WithHub::prepared(&small(), tokenizer);
    hub.json(&["pull", "hf:a/x"]);
    let snapshot = hub.path("hf/hub/models--a--x/snapshots").join(standin::COMMIT);
    fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
    let squished = hub.json(&["pull", "hf:a/x", "--recipe", "int4"]);
    assert!(Path::new(squished["dir"].as_str().unwrap()).join("tokenizer.json").is_file());
    assert_eq!(hub.json(&["pull", "hf:a/x"])["how"], "original");
    assert!(snapshot.join("tokenizer.json").is_file());
    assert_eq!(hub.json(&["pull", "hf:a/x"])["how"], "there");
}

/// Pulls a model, and returns what the tool says with the most bytes that were on the disk.
#[cfg(unix)]
fn watched(hub: &WithHub, args: &[&str]) -> (serde_json::Value, u64) {
    let mut command = hub.command(&[args, &["--json"]].concat());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(on_disk(&hub.path("home")) + on_disk(&hub.path("hf")));
        std::thread::sleep(Duration::from_millis(2));
    }
    (json(child.wait_with_output().unwrap()), peak)
}

/// The largest file of the original and the result, and 5 %: more is never on the disk.
#[cfg(unix)]
fn check_disk(hub: &WithHub, dir: &Path, peak: u64) -> u64 {
    let sizes = read_sizes(&hub.path("source"));
    let (original, largest) = (sizes.iter().sum::<u64>(), *sizes.iter().max().unwrap());
    let result = on_disk(dir);
    let bound = (largest + result) * 105 / 100;
    println!(
        "original {original}, largest file {largest}, result {result}, most on the disk {peak}, bound {bound}"
    );
    assert!(peak <= bound, "{peak} bytes on the disk, expected at most {bound}");
    assert!(bound < original, "the bound says nothing");
    assert!(peak > (result + largest) / 2, "the peak was missed");
    original
}

#[cfg(unix)]
#[test]
fn the_disk_holds_one_file_of_the_original() {
    let hub = WithHub::new(&sharded());
    hub.standin.faults.lock().unwrap().slow = Some(Duration::from_micros(100));
    let (_, peak) = watched(&hub, &["pull", NAME]);
    check_disk(&hub, &hub.path(MODEL), peak);
}

/// The same with a model of true size, and its memory.
#[cfg(unix)]
#[test]
#[ignore = "needs a large checkpoint, made by the example `synthetic`, in the directory SQUISH_SYNTHETIC"]
fn at_scale() {
    let source = std::path::PathBuf::from(
        std::env::var_os("SQUISH_SYNTHETIC").expect("SQUISH_SYNTHETIC is a directory"),
    );
    let hub = WithHub::of_dir(&source);
    for recipe in ["int4", "sqint2-plan"] {
        let (said, peak) = watched(&hub, &["pull", "hf:someone/large", "--recipe", recipe]);
        println!("{recipe}: {said}");
        check_disk(&hub, Path::new(said["dir"].as_str().unwrap()), peak);
        assert!(said["peak_memory_bytes"].as_u64().unwrap() < 1_500_000_000);
        fs::remove_dir_all(hub.path("home")).unwrap();
    }
}

/// Killed at any moment, again and again: nothing is taken for complete, what is done is not done again, and the result is the same.
#[cfg(unix)]
#[test]
fn killed_anywhere_it_goes_on() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let hub = WithHub::new(&sharded());
    let reference = hub.elsewhere();
    reference.json(&["pull", NAME]);
    let whole = hub.standin.asked("/storage/");
    hub.standin.faults.lock().unwrap().slow = Some(Duration::from_micros(100));
    let (mut rng, mut killed) = (StdRng::seed_from_u64(5), 0);
    let start = std::time::Instant::now();
    while killed < 12 && start.elapsed() < Duration::from_secs(120) {
        let mut child = hub.command(&["pull", NAME]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(rng.random_range(20..600)));
        let finished = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if hub.path(MODEL).exists() {
            break;
        }
        assert!(!finished, "it ended without a model");
        killed += 1;
        let listed = String::from_utf8(hub.call(&["list"]).stdout).unwrap();
        assert!(!listed.contains("qwen2.5"), "{listed}");
        let offline = hub.command(&["pull", NAME]).env("HF_HUB_OFFLINE", "1").output().unwrap();
        assert!(!offline.status.success(), "something partial was taken for the original");
    }
    assert!(killed > 0);
    hub.standin.faults.lock().unwrap().slow = None;
    hub.json(&["pull", NAME]);
    assert!(read_dir(&hub.path(MODEL)) == read_dir(&reference.path(MODEL)), "after {killed} kills");
    assert_eq!(stored(&hub), ["qwen2.5-0.5b-int4"]);
    println!(
        "{killed} kills, {} requests for weights, {whole} without",
        hub.standin.asked("/storage/") - whole
    );
}

#[cfg(unix)]
#[test]
fn an_interrupt_says_how_to_go_on() {
    let hub = WithHub::new(&sharded());
    hub.standin.faults.lock().unwrap().slow = Some(Duration::from_millis(2));
    for signal in ["-INT", "-TERM"] {
        let asked = hub.standin.asked("/storage/");
        let mut command = hub.command(&["pull", NAME]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        // Once it has asked for something it listens.
        let start = std::time::Instant::now();
        while hub.standin.asked("/storage/") == asked && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
        assert_refusal(&child.wait_with_output().unwrap(), &["interrupted; the same command goes on"]);
    }
    hub.standin.faults.lock().unwrap().slow = None;
    hub.json(&["pull", NAME]);
}

/// A disk that is full, as far as a process can be told so: files may not grow beyond a size.
#[cfg(unix)]
#[test]
fn a_full_disk_is_one_clear_line_and_no_end() {
    let hub = WithHub::new(&sharded());
    for kilobytes in [8, 700, 1300] {
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", kilobytes * 2);
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_squish-quant"), "pull", NAME]);
        hub.surround(&mut command);
        assert_refusal(&command.output().unwrap(), &["File too large"]);
        assert!(!hub.path(MODEL).exists());
    }
    hub.json(&["pull", NAME]);
}

#[test]
fn two_at_once_do_it_once() {
    let hub = WithHub::new(&sharded());
    hub.standin.faults.lock().unwrap().slow = Some(Duration::from_micros(50));
    let children: Vec<_> = (0..3)
        .map(|_| {
            let mut command = hub.command(&["pull", NAME, "--json"]);
            command.stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut ways: Vec<_> = children
        .into_iter()
        .map(|child| json(child.wait_with_output().unwrap())["how"].to_string())
        .collect();
    ways.sort();
    assert_eq!(ways, ["\"squished\"", "\"there\"", "\"there\""]);
    // Each file's header, and the file.
    assert_eq!(hub.standin.asked("/storage/"), 8);
}

#[test]
fn failures_of_the_hub() {
    let hub = WithHub::new(&small());
    let refused = |faults: standin::Faults, expected: &[&str]| {
        *hub.standin.faults.lock().unwrap() = faults;
        assert_refusal(&hub.call(&["pull", NAME]), expected);
        assert!(!hub.path(MODEL).exists());
    };
    refused(standin::Faults { token: Some("x".into()), ..Default::default() }, &["set HF_TOKEN"]);
    refused(standin::Faults { missing: true, ..Default::default() }, &["no such repository"]);
    *hub.standin.faults.lock().unwrap() = standin::Faults::default();
    hub.json(&["pull", NAME]);
}

#[test]
fn wrong_bytes_are_not_squished() {
    let hub = WithHub::new(&small());
    hub.standin.faults.lock().unwrap().corrupt = true;
    assert_refusal(&hub.call(&["pull", NAME]), &["the digest is"]);
    assert!(!hub.path(MODEL).exists());
    hub.standin.faults.lock().unwrap().corrupt = false;
    hub.json(&["pull", NAME]);
}

#[test]
fn a_recipe_with_calibration_needs_the_original_to_the_end() {
    let mut source = Source::new(&Spec { layers: 1, shards: 2, ..Spec::default() });
    source.config["max_position_embeddings"] = 1024.into();
    let hub = WithHub::prepared(&source, tokenizer);
    assert_eq!(hub.json(&["pull", "qwen2.5:0.5b-sqint2"])["how"], "squished");
    assert_eq!(stored(&hub), ["qwen2.5-0.5b-sqint2"]);
    assert!(!hub.path("hf").exists());
    // What the headers tell ends it before the weights come.
    let mut other = source.clone();
    other.config["architectures"] = serde_json::json!(["NobodyKnowsThis"]);
    let hub = WithHub::prepared(&other, tokenizer);
    assert_refusal(&hub.call(&["pull", "qwen2.5:0.5b-sqint2"]), &["NobodyKnowsThis"]);
    assert_eq!(hub.standin.asked("/storage/"), 2, "two headers");
}

#[test]
fn a_published_checkpoint_is_taken_where_it_is_one() {
    let maker = WithHub::prepared(&small(), tokenizer);
    maker.json(&["pull", NAME]);
    let squished = read_dir(&maker.path(MODEL));
    let squished: Vec<_> = squished.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let original = read_dir(&maker.path("source"));
    let original: Vec<_> = original.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
    let published = "makers/qwen2.5-0.5b-int4";
    let hub_of = |published: &str, files| WithHub {
        sandbox: Sandbox::new(&Source::tiny()),
        standin: standin::Standin::with(&[(ORIGINAL, original.clone()), (published, files)]),
    };
    let pull =
        |hub: &WithHub| hub.command(&["pull", NAME, "--json"]).env("SQUISH_ORG", "makers").output().unwrap();

    let hub = hub_of(published, squished.clone());
    assert_eq!(json(pull(&hub))["how"], "published");
    assert!(read_dir(&hub.path(MODEL)) == read_dir(&maker.path(MODEL)));
    assert_eq!(stored(&hub), ["qwen2.5-0.5b-int4"]);
    assert_eq!(hub.standin.asked(&format!("/api/models/{ORIGINAL}")), 0);
    // Without the setting nobody is asked.
    let hub = hub_of(published, squished.clone());
    assert_eq!(hub.json(&["pull", NAME])["how"], "squished");
    assert_eq!(hub.standin.asked("/api/models/makers"), 0);
    // Nothing published, or something else under the name, or what cannot be opened.
    let mut broken = squished.clone();
    broken.retain(|(name, _)| *name != "model.safetensors");
    broken.push((
        "other.safetensors",
        squished.iter().find(|(n, _)| *n == "model.safetensors").unwrap().1.clone(),
    ));
    let other = ("makers/other", squished);
    for (name, files) in [other, (published, original.clone()), (published, broken)] {
        let hub = hub_of(name, files);
        assert_eq!(json(pull(&hub))["how"], "squished");
        assert!(read_dir(&hub.path(MODEL)) == read_dir(&maker.path(MODEL)), "{name}");
    }
}

//! What a compression leaves behind: all of its output, or nothing that looks complete.

mod support;

use std::fs;
use support::*;

const COMPRESS: &[&str] = &["compress", "source", "--out", "out"];

#[test]
fn a_directory_that_is_not_empty_stays_as_it_is() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::create_dir(sandbox.path("out")).unwrap();
    fs::write(sandbox.path("out/thesis.txt"), "years of work").unwrap();
    sandbox.refuses(COMPRESS, &["out: the output directory exists and is not empty"]);
    // A hidden file counts.
    fs::rename(sandbox.path("out/thesis.txt"), sandbox.path("out/.thesis")).unwrap();
    sandbox.refuses(COMPRESS, &["out: the output directory exists and is not empty"]);
}

#[test]
fn the_source_is_not_written_into() {
    let sandbox = Sandbox::new(&Source::tiny());
    for out in ["source", "./source/", "source/../source"] {
        sandbox.refuses(&["compress", "source", "--out", out], &["source", "not empty"]);
    }
}

#[test]
fn a_place_that_cannot_be_written() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::write(sandbox.path("file"), "").unwrap();
    for out in ["file", "file/out", "file/a/b/out"] {
        sandbox.refuses(&["compress", "source", "--out", out], &["file"]);
    }
    let long = "x".repeat(300);
    sandbox.refuses(&["compress", "source", "--out", &long], &[&long]);
}

/// Refused before the work: the directory appears by a rename, which `.` and `..` cannot be the target of.
#[test]
fn a_directory_without_a_name_of_its_own() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::create_dir_all(sandbox.path("a/b")).unwrap();
    let mut command = sandbox.command(&["compress", "../../source", "--out", "."]);
    assert_refusal(&command.current_dir(sandbox.path("a/b")).output().unwrap(), &[".", "name"]);
    assert_eq!(files(&sandbox.path("a")).len(), 1);
    sandbox.refuses(&["compress", "source", "--out", "a/.."], &["a/..", "name"]);
}

#[test]
fn an_empty_directory_and_missing_parents_are_filled() {
    let sandbox = Sandbox::new(&Source::tiny());
    fs::create_dir(sandbox.path("out")).unwrap();
    sandbox.succeeds(COMPRESS);
    for out in ["some/new/place/", "some/new/./place2/."] {
        sandbox.succeeds(&["compress", "source", "--out", out]);
    }
    assert_eq!(files(&sandbox.path("out")).len(), files(&sandbox.path("some/new/place")).len());
    assert_eq!(fs::read_dir(sandbox.path("some/new")).unwrap().count(), 2);
}

#[cfg(unix)]
mod unix {
    use super::*;
    use squish_models::Checkpoint;
    use std::{
        os::unix::process::ExitStatusExt,
        path::PathBuf,
        process::{Child, Command, Output, Stdio},
        time::{Duration, Instant},
    };

    #[test]
    fn links_to_directories() {
        let sandbox = Sandbox::new(&Source::tiny());
        std::os::unix::fs::symlink("nowhere", sandbox.path("dangling")).unwrap();
        sandbox.refuses(&["compress", "source", "--out", "dangling"], &["dangling"]);
        fs::create_dir_all(sandbox.path("disk/real")).unwrap();
        std::os::unix::fs::symlink("disk/real", sandbox.path("link")).unwrap();
        sandbox.succeeds(&["compress", "source", "--out", "link"]);
        assert!(sandbox.path("link").is_symlink());
        assert!(Checkpoint::open(sandbox.path("disk/real")).is_ok());
    }

    /// Runs a compression under a limit on the size of a file, beyond which writing fails as on a full disk.
    fn with_file_limit(sandbox: &Sandbox, kilobytes: usize) -> Output {
        // Limits are in blocks of 512 bytes; the signal that comes with the error is ignored.
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", 2 * kilobytes);
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_squish-quant")]).args(COMPRESS);
        command.current_dir(sandbox.path("")).output().unwrap()
    }

    #[test]
    fn a_write_that_fails_leaves_nothing() {
        let sandbox = Sandbox::new(&Source::tiny());
        // Copied last, when all weights are written.
        fs::write(sandbox.path("source/merges.txt"), vec![b' '; 1 << 20]).unwrap();
        let before = files(&sandbox.path(""));
        for (kilobytes, file) in [(8, "model.safetensors"), (512, "merges.txt")] {
            assert_refusal(&with_file_limit(&sandbox, kilobytes), &[file, "File too large"]);
            assert!(files(&sandbox.path("")) == before, "{file} left something");
        }
        let unlimited = with_file_limit(&sandbox, 2048);
        assert!(unlimited.status.success(), "{unlimited:?}");
    }

    /// A compression of a larger checkpoint on one thread, caught while it is at work.
    fn at_work(sandbox: &Sandbox) -> (Child, PathBuf) {
        let mut command = sandbox.command(COMPRESS);
        command.env("RAYON_NUM_THREADS", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            if let Some(partial) = partial(sandbox) {
                return (child, partial);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        panic!("the compression did not begin: {}", child.wait().unwrap());
    }

    /// The directory of a compression at work, once it holds a weights file.
    fn partial(sandbox: &Sandbox) -> Option<PathBuf> {
        let entries = fs::read_dir(sandbox.path("")).unwrap().map(|e| e.unwrap().path());
        let mut hidden =
            entries.filter(|p| p.file_name().unwrap().as_encoded_bytes().starts_with(b".out.partial-"));
        hidden.find(|path| path.join("model.safetensors").exists())
    }

    fn larger() -> Sandbox {
        let sandbox = Sandbox::new(&Source::new(&Spec {
            hidden: 512,
            intermediate: 2048,
            layers: 6,
            ..Spec::default()
        }));
        assert!(partial(&sandbox).is_none());
        sandbox
    }

    fn kill(child: &Child, signal: &str) {
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn an_interrupt_leaves_nothing() {
        let sandbox = larger();
        for signal in ["-INT", "-TERM"] {
            let (child, _) = at_work(&sandbox);
            kill(&child, signal);
            let output = child.wait_with_output().unwrap();
            assert_refusal(&output, &["interrupted; nothing was written"]);
            let left: Vec<_> =
                fs::read_dir(sandbox.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left, ["source"]);
        }
    }

    #[test]
    fn a_kill_leaves_nothing_that_looks_complete() {
        let sandbox = larger();
        let (mut child, partial) = at_work(&sandbox);
        kill(&child, "-KILL");
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(!sandbox.path("out").exists());
        assert!(partial.exists(), "nothing could remove it");
        assert!(Checkpoint::open(&partial).is_err(), "what is left can be opened");
        // The next run is not disturbed.
        let (child, _) = at_work(&sandbox);
        kill(&child, "-INT");
        child.wait_with_output().unwrap();
    }
}

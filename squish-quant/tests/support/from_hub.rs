//! A stand-in hub with models on it, and the tool beside it.

// Each test binary uses a part of this.
#![allow(dead_code)]

#[path = "../../../squish-hub/tests/standin/mod.rs"]
pub mod standin;

use crate::support::*;
use standin::Standin;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// The repository of the catalog's `qwen2.5-0.5b`.
pub const ORIGINAL: &str = "Qwen/Qwen2.5-0.5B-Instruct";

/// The files of a directory.
pub fn read_dir(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let read = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(read).collect();
    files.sort();
    files
}

/// The sizes of the files of a directory.
pub fn read_sizes(dir: &Path) -> Vec<u64> {
    fs::read_dir(dir).unwrap().map(|entry| fs::metadata(entry.unwrap().path()).unwrap().len()).collect()
}

/// A directory with `home` and `hf` for the tool, and `source`, which the hub offers.
pub struct WithHub {
    pub sandbox: Sandbox,
    pub standin: Standin,
}

impl WithHub {
    /// A hub that offers this model under every name.
    pub fn new(source: &Source) -> Self {
        Self::prepared(source, |_| {})
    }

    /// A hub that offers the files of a directory under every name; `source` is a link to it.
    #[cfg(unix)]
    pub fn of_dir(dir: &Path) -> Self {
        let sandbox = Sandbox::new(&Source::tiny());
        fs::remove_dir_all(sandbox.path("source")).unwrap();
        std::os::unix::fs::symlink(dir.canonicalize().unwrap(), sandbox.path("source")).unwrap();
        let files = read_dir(dir);
        let files = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>();
        Self { standin: Standin::new(&files), sandbox }
    }

    /// As [`WithHub::new`], with what `prepare` does to the directory of the model.
    pub fn prepared(source: &Source, prepare: impl FnOnce(&Path)) -> Self {
        let sandbox = Sandbox::new(source);
        prepare(&sandbox.path("source"));
        let files = read_dir(&sandbox.path("source"));
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect();
        Self { standin: Standin::new(&files), sandbox }
    }

    /// The same hub, and another home.
    pub fn elsewhere(&self) -> Self {
        Self { sandbox: Sandbox::new(&Source::tiny()), standin: self.standin.clone() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    /// The tool with the hub's address.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
        self.surround(&mut command);
        command.args(args);
        command
    }

    /// Sets what the tool reads from its surroundings.
    pub fn surround(&self, command: &mut Command) {
        command.current_dir(self.path("")).env("HF_ENDPOINT", &self.standin.address);
        command.env("SQUISH_HOME", self.path("home")).env("HF_HOME", self.path("hf"));
        command.env("OLLAMA_MODELS", self.path("none"));
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "SQUISH_ORG", "RAYON_NUM_THREADS"] {
            command.env_remove(name);
        }
    }

    pub fn call(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs the tool, which must succeed, and returns the JSON that it prints.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        json(self.call(&[args, &["--json"]].concat()))
    }
}

pub fn json(output: Output) -> serde_json::Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Bytes that what lies in a directory takes on the disk, links not counted. Files may vanish meanwhile.
#[cfg(unix)]
pub fn on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => on_disk(&entry.path()),
        Ok(found) if found.is_file() => found.blocks() * 512,
        _ => 0,
    };
    entries.map(of).sum()
}

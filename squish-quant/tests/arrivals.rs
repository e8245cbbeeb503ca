//! Compression of files that arrive one after the other, without a hub.

mod support;

use proptest::prelude::*;
use safetensors::Dtype;
use squish_quant::{Arrivals, Error, Options, Progress, Recipe, Result, Silent, compress, compress_arriving};
use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
};
use support::*;

/// Files of one directory that arrive for the outline in another.
struct Local {
    outline: PathBuf,
    files: PathBuf,
    brought: Cell<usize>,
}

impl Local {
    fn new(outline: PathBuf, files: PathBuf) -> Self {
        Self { outline, files, brought: Cell::new(0) }
    }
}

impl Arrivals for Local {
    fn outline(&self) -> &Path {
        &self.outline
    }

    fn sha256(&self, _: &str) -> Option<String> {
        None
    }

    fn missing(&self, _: &str) -> u64 {
        0
    }

    fn bring(&self, file: &str) -> Result<PathBuf> {
        self.brought.set(self.brought.get() + 1);
        Ok(self.files.join(file))
    }

    fn discard(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

/// Interrupts when it has been asked so often.
struct Until(Cell<usize>);

impl Progress for Until {
    fn at(&self, _: usize, _: usize, _: &str) {}

    fn interrupted(&self) -> bool {
        self.0.set(self.0.get().saturating_sub(1));
        self.0.get() == 0
    }
}

fn options(recipe: &str) -> Options {
    Options::new(Recipe::load(recipe).unwrap())
}

fn source() -> Sandbox {
    Sandbox::new(&Source::new(&Spec { shards: 3, ..Spec::default() }))
}

#[test]
fn calibration_and_squished_originals_are_refused() {
    let sandbox = source();
    let local = Local::new(sandbox.path("source"), sandbox.path("source"));
    let error =
        compress_arriving(&local, &sandbox.path("out"), &sandbox.path("work"), &options("sqint2"), &Silent);
    assert!(error.unwrap_err().to_string().contains("without calibration"));
    compress(&sandbox.path("source"), &sandbox.path("out"), &options("int4"), &Silent).unwrap();
    let local = Local::new(sandbox.path("out"), sandbox.path("out"));
    let error =
        compress_arriving(&local, &sandbox.path("again"), &sandbox.path("work"), &options("int4"), &Silent);
    assert!(matches!(error, Err(Error::AlreadySquished(_))));
    assert_eq!(local.brought.get(), 0);
}

#[test]
fn a_file_that_is_not_what_its_header_said_is_refused() {
    let sandbox = source();
    // As many bytes, of another type.
    Source::new(&Spec { shards: 3, dtype: Dtype::F16, ..Spec::default() }).write(&sandbox.path("other"));
    let local = Local::new(sandbox.path("source"), sandbox.path("other"));
    let error =
        compress_arriving(&local, &sandbox.path("out"), &sandbox.path("work"), &options("int4"), &Silent);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Arrival { .. }) && error.to_string().contains("model-1"), "{error}");
    assert!(!sandbox.path("out").exists());
}

#[test]
fn other_work_begins_anew() {
    let sandbox = source();
    let local = Local::new(sandbox.path("source"), sandbox.path("source"));
    let (out, work) = (sandbox.path("out"), sandbox.path("work"));
    let stopped = compress_arriving(&local, &out, &work, &options("int4"), &Until(Cell::new(30)));
    assert!(matches!(stopped, Err(Error::Paused { .. })), "{stopped:?}");
    assert!(fs::read_dir(work.join("done")).unwrap().count() > 0, "interrupted too early to mean anything");
    compress_arriving(&local, &out, &work, &options("int3"), &Silent).unwrap();
    compress(&sandbox.path("source"), &sandbox.path("whole"), &options("int3"), &Silent).unwrap();
    assert!(same(&sandbox, "out", "whole"));
}

/// Whether two directories hold the same files.
fn same(sandbox: &Sandbox, a: &str, b: &str) -> bool {
    let [a, b] = [a, b].map(|dir| files(&sandbox.path(dir)).into_values().collect::<Vec<_>>());
    a == b
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..Default::default() })]

    /// Interrupted anywhere, as often as it may be, with files split or not: the result is that of the whole original.
    #[test]
    fn interrupted_anywhere(stops in proptest::collection::vec(1usize..60, 0..6), max_shard_bytes in 20_000usize..200_000, recipe in prop::sample::select(vec!["int4", "sqint2-plan"])) {
        let sandbox = source();
        let local = Local::new(sandbox.path("source"), sandbox.path("source"));
        let options = Options { max_shard_bytes, ..options(recipe) };
        compress(&sandbox.path("source"), &sandbox.path("whole"), &options, &Silent).unwrap();
        let arrive = |progress: &dyn Progress| {
            compress_arriving(&local, &sandbox.path("out"), &sandbox.path("work"), &options, progress)
        };
        let mut finished = false;
        for stop in stops {
            match arrive(&Until(Cell::new(stop))) {
                Ok(_) => { finished = true; break }
                Err(error) => prop_assert!(matches!(error, Error::Paused { .. }), "{error}"),
            }
            prop_assert!(!sandbox.path("out").exists());
        }
        if !finished {
            arrive(&Silent).unwrap();
        }
        prop_assert!(same(&sandbox, "out", "whole"));
    }
}

//! What loading and the decoding of a token ask of the device. Tests of their own process, one at a time: the stand-in counts for all threads.

use model_tests::{MODELS, testbed};
use objc2_metal::stand_in;
use squish_models::{KvMode, Model, SessionOptions, metal_device};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Launches of a block, at most.
const MOST: usize = 10;

static ALONE: Mutex<()> = Mutex::new(());

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../assets/squish-tiny-sqint2")
}

/// The testbed's models and the bundled one: at most [`MOST`] launches a block, and one wait, for the logits.
#[test]
fn a_block_takes_few_launches_and_nothing_waits() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dirs = MODELS.into_iter().filter_map(testbed).chain([bundled()]);
    let device = metal_device().unwrap();
    for dir in dirs {
        let model = Model::from_dir(&dir, &device).unwrap();
        // What lies around the blocks.
        stand_in::take_kernels();
        let hidden = model.layers().embed(&[4]).unwrap();
        model.layers().head(model.layers().norm(&hidden).unwrap()).unwrap();
        let around = stand_in::take_kernels().len();
        device.synchronize().unwrap();

        // With no recent positions but those of its page, the first token of a page packs the page before.
        for (mode, past) in [(KvMode::F32, 3), (KvMode::F16, 3), (KvMode::K8V4, 3), (KvMode::K8V4, 64)] {
            let options = SessionOptions { recent: 0, ..SessionOptions::in_mode(mode) };
            let mut session = model.session_with(options).unwrap();
            session.feed(&vec![5; past]).unwrap().to_vec1::<f32>().unwrap();
            stand_in::take_kernels();
            let before = stand_in::counts();
            let logits = session.feed(&[4]).unwrap();
            let all = stand_in::take_kernels();
            logits.to_vec1::<f32>().unwrap();
            assert_eq!(stand_in::counts().waits - before.waits, 1, "{}", dir.display());
            let blocks = model.config().num_hidden_layers;
            let launches = all.len() - around;
            assert!(launches.is_multiple_of(blocks), "{}: {all:?}", dir.display());
            let a_block = launches / blocks;
            println!("{} {mode} after {past}: {} launches, {a_block} a block", dir.display(), all.len());
            assert!(a_block <= MOST, "{}: {a_block} a block: {all:?}", dir.display());
        }
    }
}

/// Loading copies no matrix, and a token waits for the device once: for its logits.
#[test]
fn weights_are_not_copied_and_nothing_waits_between_layers() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = stand_in::counts();
    let model = Model::from_dir(bundled(), &metal_device().unwrap()).unwrap();
    let mut session = model.session();
    let mut feed = |ids: &[u32]| session.feed(ids).unwrap().to_vec1::<f32>().unwrap();
    feed(&[1, 2, 3]);
    let loaded = stand_in::counts();
    // Norms and biases, which are read into f32, and what commands carry.
    let copied = loaded.copied - before.copied;
    assert!(copied < 1 << 18, "{copied} bytes were copied");
    feed(&[4]);
    let after = stand_in::counts();
    assert_eq!(after.waits - loaded.waits, 1);
    println!("{copied} bytes copied, {} dispatches a token", after.dispatches - loaded.dispatches);
}

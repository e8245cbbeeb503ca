//! Layers run one at a time, and the inputs of their linears.

use crate::Result;
use candle_core::{Tensor, TensorId};
use squish_kernels::Input;
use squish_models::{Model, kv_cache::LayerCache, layers::Observer};
use std::cell::RefCell;

/// A residual layer of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    block: usize,
    kind: LayerKind,
}

/// What a layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// Attention.
    Attention,
    /// The feed-forward layer.
    Mlp,
}

impl Layer {
    /// All layers of a network, in order.
    pub fn all(blocks: usize) -> Vec<Self> {
        let kinds = [LayerKind::Attention, LayerKind::Mlp];
        (0..blocks).flat_map(|block| kinds.map(|kind| Self { block, kind })).collect()
    }

    /// Runs a whole sequence through the layer: `x [n, hidden_size]` to the same shape.
    pub fn run(self, model: &Model, x: &Tensor) -> candle_core::Result<Tensor> {
        let layers = model.layers();
        match self.kind {
            LayerKind::Attention => {
                let step = layers.step(0, x.dim(0)?)?;
                layers.attention(self.block, x, &step, &mut LayerCache::default())
            }
            LayerKind::Mlp => layers.mlp(self.block, x),
        }
    }
}

/// Sees the inputs of linears, for whoever runs a layer in the same thread.
#[derive(Debug, Default)]
pub struct Tap;

thread_local! {
    /// The runs under way in this thread. A thread that waits for a parallel operation may begin another run
    /// meanwhile, and ends it before it goes on with the first: so the last one is the one that is running.
    static RUNS: RefCell<Vec<Run>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug, Default)]
struct Run {
    /// The linear whose input is wanted, and whether to stop there.
    wanted: Option<(String, bool)>,
    found: Option<Tensor>,
    /// All that came by, where no linear in particular is wanted.
    order: Vec<(String, TensorId)>,
}

impl Tap {
    /// What `run` returns, and what was seen meanwhile.
    fn during<T>(wanted: Option<(String, bool)>, run: impl FnOnce() -> T) -> (T, Run) {
        RUNS.with_borrow_mut(|runs| runs.push(Run { wanted, ..Run::default() }));
        let outcome = run();
        let seen = RUNS.with_borrow_mut(Vec::pop).unwrap_or_default();
        (outcome, seen)
    }

    /// The input of a linear; `run` is stopped there.
    pub fn catch(linear: &str, run: impl FnOnce() -> candle_core::Result<Tensor>) -> Result<Tensor> {
        let (outcome, seen) = Self::during(Some((linear.into(), true)), run);
        match seen.found {
            Some(found) => Ok(found),
            None => Err(outcome.err().unwrap_or_else(|| unseen(linear)).into()),
        }
    }

    /// The input of a linear, and what `run` returns.
    pub fn watch(
        linear: &str,
        run: impl FnOnce() -> candle_core::Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let (outcome, seen) = Self::during(Some((linear.into(), false)), run);
        Ok((seen.found.ok_or_else(|| unseen(linear))?, outcome?))
    }

    /// The linears of a layer in the order in which they multiply, those of one input together.
    pub fn stages(model: &Model, layer: Layer, ids: &[u32]) -> Result<Vec<Vec<String>>> {
        /// Enough to see the order.
        const TOKENS: usize = 4;
        let x = model.layers().embed(&ids[..TOKENS.min(ids.len())])?;
        let (outcome, seen) = Self::during(None, || layer.run(model, &x));
        outcome?;
        let mut stages: Vec<(TensorId, Vec<String>)> = Vec::new();
        for (name, id) in seen.order {
            match stages.last_mut() {
                Some((last, names)) if *last == id => names.push(name),
                _ => stages.push((id, vec![name])),
            }
        }
        Ok(stages.into_iter().map(|(_, names)| names).collect())
    }
}

fn unseen(linear: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("`{linear}` has multiplied nothing"))
}

impl Observer for Tap {
    fn input(&self, weight: &str, input: &Input) -> candle_core::Result<()> {
        RUNS.with_borrow_mut(|runs| {
            let Some(run) = runs.last_mut() else { return Ok(()) };
            match &run.wanted {
                None => run.order.push((weight.into(), input.plain()?.id())),
                Some((wanted, stop)) if wanted == weight => {
                    run.found = Some(input.plain()?.contiguous()?);
                    if *stop {
                        return Err(candle_core::Error::Msg("stopped at the wanted input".into()));
                    }
                }
                Some(_) => {}
            }
            Ok(())
        })
    }
}

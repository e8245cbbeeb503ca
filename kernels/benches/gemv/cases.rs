//! What is measured.

use bytes::Bytes;
use rayon::prelude::*;
use squish_kernels::{
    Packed, QuantizedInput,
    arch::{self, Kernels},
    ops, scheme,
};
use std::hint::black_box;

/// Rows and columns: the projections of Qwen2.5-1.5B's MLP, up and down.
pub const SHAPES: [[usize; 2]; 2] = [[8960, 1536], [1536, 8960]];

/// Numbers of threads.
pub const THREADS: [usize; 2] = [1, 4];

/// Bytes that all matrices are cut from: several times a usual last-level cache.
const MEMORY: usize = 256 << 20;

/// A pool of so many threads.
pub fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool")
}

/// Noise, of which any two bytes are an f16 of magnitude below 2: codes and scales alike.
pub fn memory() -> Bytes {
    let mut state = 1u64;
    let words = (0..MEMORY / 8).flat_map(|_| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((state ^ state >> 29) & 0xbfff_bfff_bfff_bfff).to_le_bytes()
    });
    words.collect::<Vec<u8>>().into()
}

/// Reads so many bytes by all threads of the pool that this runs in: the sum of their words.
pub fn read(memory: &[u8]) -> u64 {
    let sum = |bytes: &[u8]| {
        let words = bytes.as_chunks::<64>().0.iter();
        // Eight sums side by side, a cache line a step.
        let sums = words.fold([0u64; 8], |sums, line| {
            let word = |i: usize| u64::from_le_bytes(*line[8 * i..].first_chunk().expect("eight bytes"));
            std::array::from_fn(|i| sums[i].wrapping_add(word(i)))
        });
        sums.into_iter().fold(0, u64::wrapping_add)
    };
    memory.par_chunks(1 << 18).map(sum).reduce(|| 0, u64::wrapping_add)
}

/// Matrices of one scheme and shape, multiplied in turn by one instruction set.
pub struct Case {
    pub scheme: &'static str,
    pub kernels: Kernels,
    matrices: Vec<Packed>,
    next: usize,
    x: QuantizedInput,
    y: Vec<f32>,
}

impl Case {
    /// Every scheme with integer dot products, by every instruction set that this machine has.
    pub fn all(memory: &Bytes, shape: [usize; 2]) -> Vec<Self> {
        let schemes = scheme::ALL.iter().filter(|scheme| scheme.integers().is_some());
        let case = |scheme: &&'static dyn scheme::Scheme, kernels| Self::new(*scheme, kernels, memory, shape);
        schemes.flat_map(|scheme| arch::available().into_iter().map(move |k| case(scheme, k))).collect()
    }

    fn new(
        scheme: &'static dyn scheme::Scheme,
        kernels: Kernels,
        memory: &Bytes,
        [rows, cols]: [usize; 2],
    ) -> Self {
        let group = scheme.default_group(cols);
        let layout = Packed::layout(scheme, rows, cols, group).expect("a shape of the scheme");
        let mut rest = memory.clone();
        let mut matrices = Vec::new();
        while layout.iter().map(|part| part.bytes()).sum::<usize>() <= rest.len() {
            let parts = layout.iter().map(|part| rest.split_to(part.bytes())).collect();
            matrices.push(Packed::new(scheme, rows, cols, group, parts).expect("parts of the layout"));
        }
        let x: Vec<f32> = (0..cols).map(|i| (i as f32).sin()).collect();
        let (x, y) = (QuantizedInput::new(&x), vec![0.0; rows]);
        Self { scheme: scheme.name(), kernels, matrices, next: 0, x, y }
    }

    /// Bytes of one matrix.
    pub fn bytes(&self) -> usize {
        self.matrices[0].bytes()
    }

    /// Weights of one matrix.
    pub fn weights(&self) -> usize {
        self.matrices[0].rows() * self.matrices[0].cols()
    }

    /// Multiplies the next matrix by the input, in the pool that this runs in.
    pub fn multiply(&mut self) {
        ops::matvec(&self.kernels, &[&self.matrices[self.next]], black_box(&self.x), &mut self.y);
        black_box(&self.y);
        self.next = (self.next + 1) % self.matrices.len();
    }
}

// What all shaders share. The files of this folder are one library: they are compiled one after the other, this one first.
//
// Conventions. A simdgroup is 32 threads, its threads are lanes. Buffers are bound in the order of a kernel's
// parameters; memory shared by a threadgroup is always a parameter, so that its size is the host's to decide. simd
// operations and barriers stand where all threads come by: tails are masked, and none returns early but where all of a threadgroup
// do, or all of a simdgroup behind the last barrier.
//
// Each file opens with what its kernels read, their grid, what they move (bytes of device memory an output, those that come
// from a cache named so), and what they aim at: the roofline's bandwidth, its arithmetic, or, of short rows, the time of a dispatch.
#include <metal_stdlib>
using namespace metal;

// The shape of a product y [batch, rows] = x [batch, cols] W^T, and weights that share a scale.
struct Product {
  uint rows;
  uint cols;
  uint batch;
  uint group;
};

// Up to three products of one input x [cols]: their outputs lie one after the other, and their strips of rows are counted on. A
// matrix that is not there has no rows.
struct Together {
  uint rows[3];
  uint bits[3];  // of a trellis code
  uint cols;
  uint group;
};

// The matrix of a threadgroup, its strip there, and the outputs before those of the matrix.
struct Strip {
  uint matrix;
  uint index;
  uint before;
};

METAL_FUNC void find_strip(constant Together& p, uint group, uint rows, thread Strip& strip) {
  while (strip.matrix < 2 && strip.index >= (p.rows[strip.matrix] + rows - 1) / rows) {
    strip.index -= (p.rows[strip.matrix] + rows - 1) / rows;
    strip.before += p.rows[strip.matrix];
    strip.matrix++;
  }
}

template <typename T>
METAL_FUNC T chosen(uint which, T a, T b, T c) { return which == 0 ? a : which == 1 ? b : c; }

// An f32 whose upper half these bits are.
METAL_FUNC float from_bf16(ushort bits) { return as_type<float>(uint(bits) << 16); }

// Of a window of 12 bits (those above do not matter) the lowest and the highest four: the index of its level.
METAL_FUNC uint pair_of(uint window) { return (window & 15) | (window >> 4 & 0xf0); }

// What all shaders share. The files of this folder are one library: they are compiled one after the other, this one first.
//
// Conventions. A simdgroup is 32 threads, its threads are lanes. Buffers are bound in the order of a kernel's
// parameters; memory shared by a threadgroup is always a parameter, so that its size is the host's to decide. simd
// operations and barriers stand where all threads come by: no thread returns early, tails are masked.
#include <metal_stdlib>
using namespace metal;

// The shape of a product y [batch, rows] = x [batch, cols] W^T, and weights that share a scale.
struct Product {
  uint rows;
  uint cols;
  uint batch;
  uint group;
};

// An f32 whose upper half these bits are.
METAL_FUNC float from_bf16(ushort bits) { return as_type<float>(uint(bits) << 16); }

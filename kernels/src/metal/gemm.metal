// y [batch, rows] = x [batch, cols] W^T for larger batches, with 8 x 8 matrices that a simdgroup multiplies at once.
//
// Reads     any stored matrix, x f32.
// Grid      (rows / 32, batch / 64) threadgroups of 4 simdgroups; a threadgroup makes 64 x 32 outputs.
// Moves     the matrix once for 64 inputs, x once for 32 rows: (bits / 512 + 1 / 8) cols + 4 bytes an output.
// Aims at   the arithmetic of simdgroup matrices: a weight is decoded once for 64 products.
//
// For 32 columns at a time, both operands are put into threadgroup memory, the weights decoded. A simdgroup multiplies
// 32 inputs by 16 rows: 4 x 2 matrices.

constant constexpr uint TILE_INPUTS = 64;
constant constexpr uint TILE_ROWS = 32;
constant constexpr uint TILE_DEPTH = 32;
// From one line of a tile to the next: not a multiple of the 32 banks of threadgroup memory.
constant constexpr uint TILE_STRIDE = 36;

template <typename S>
kernel void gemm(
    device const uchar* codes [[buffer(0)]],
    device const half* scales [[buffer(1)]],
    device const half* mins [[buffer(2)]],
    constant char* table [[buffer(3)]],
    device const float* x [[buffer(4)]],
    device float* y [[buffer(5)]],
    constant Product& p [[buffer(6)]],
    threadgroup float* inputs [[threadgroup(0)]],   // [TILE_INPUTS, TILE_STRIDE]
    threadgroup float* weights [[threadgroup(1)]],  // [TILE_ROWS, TILE_STRIDE]
    uint2 tile [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  const Stored w = {codes, scales, mins, table, p.cols, p.group};
  const uint first_row = tile.x * TILE_ROWS, first_input = tile.y * TILE_INPUTS;
  const uint input = simdgroup / 2 * 32, row = simdgroup % 2 * 16;  // of the simdgroup's own outputs
  simdgroup_float8x8 sums[4][2];
  #pragma clang loop unroll(full)
  for (uint i = 0; i < 4; i++) {
    for (uint j = 0; j < 2; j++) sums[i][j] = simdgroup_float8x8(0.0f);
  }
  for (uint start = 0; start < p.cols; start += TILE_DEPTH) {
    for (uint i = thread_index; i < TILE_INPUTS * TILE_DEPTH; i += 128) {
      const uint n = first_input + i / TILE_DEPTH, col = start + i % TILE_DEPTH;
      inputs[i / TILE_DEPTH * TILE_STRIDE + i % TILE_DEPTH] = n < p.batch && col < p.cols ? x[n * p.cols + col] : 0.0f;
    }
    for (uint i = thread_index; i < TILE_ROWS * TILE_DEPTH; i += 128) {
      const uint r = first_row + i / TILE_DEPTH, col = start + i % TILE_DEPTH;
      weights[i / TILE_DEPTH * TILE_STRIDE + i % TILE_DEPTH] = r < p.rows && col < p.cols ? S::weight(w, r, col) : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    #pragma clang loop unroll(full)
    for (uint k = 0; k < TILE_DEPTH; k += 8) {
      simdgroup_float8x8 left[4], right[2];
      for (uint i = 0; i < 4; i++) simdgroup_load(left[i], inputs + (input + 8 * i) * TILE_STRIDE + k, TILE_STRIDE);
      for (uint j = 0; j < 2; j++) {
        simdgroup_load(right[j], weights + (row + 8 * j) * TILE_STRIDE + k, TILE_STRIDE, ulong2(0), true);
      }
      for (uint i = 0; i < 4; i++) {
        for (uint j = 0; j < 2; j++) simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  // Through threadgroup memory, as the last tiles may reach over the edges.
  for (uint i = 0; i < 4; i++) {
    for (uint j = 0; j < 2; j++) {
      simdgroup_store(sums[i][j], inputs + (input + 8 * i) * TILE_STRIDE + row + 8 * j, TILE_STRIDE);
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < TILE_INPUTS * TILE_ROWS; i += 128) {
    const uint n = first_input + i / TILE_ROWS, r = first_row + i % TILE_ROWS;
    if (n < p.batch && r < p.rows) y[n * p.rows + r] = inputs[i / TILE_ROWS * TILE_STRIDE + i % TILE_ROWS];
  }
}

#define GEMM(NAME, ...) template [[host_name("gemm_" #NAME)]] kernel decltype(gemm<__VA_ARGS__>) gemm<__VA_ARGS__>;
GEMM(tcq2, Trellis<2>)
GEMM(tcq3, Trellis<3>)
GEMM(tcq4, Trellis<4>)
GEMM(tcq5, Trellis<5>)
GEMM(nf2, Gaussian<2>)
GEMM(int3, Gaussian<3>)
GEMM(int4r, Gaussian<4>)
GEMM(int4, Int4)
GEMM(int8, Int8)
GEMM(bf16, Unquantised<Bf16>)
GEMM(f16, Unquantised<F16>)
GEMM(f32, Unquantised<F32>)

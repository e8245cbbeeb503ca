// y [batch, rows] = x [batch, cols] W^T for batch <= 8 and unquantised matrices: bf16, f16, f32.
//
// Reads     weights [rows, cols], x f32.
// Grid      rows / 8 threadgroups of 2 simdgroups; a simdgroup multiplies 4 rows.
// Moves     each weight once, x once for 4 rows (from the cache): 2 cols + 4 bytes an output, 4 cols + 4 of f32.
// Aims at   the memory's bandwidth: a lane reads 4 weights at a time where `cols` allows it, else one.

constant constexpr uint FLOAT_ROWS = 4;

// How a stored element is read: its type, and that of four.
struct Bf16 { typedef ushort One; typedef ushort4 Four; static METAL_FUNC float value(ushort v) { return from_bf16(v); } };
struct F16 { typedef half One; typedef half4 Four; static METAL_FUNC float value(half v) { return float(v); } };
struct F32 { typedef float One; typedef float4 Four; static METAL_FUNC float value(float v) { return v; } };

template <typename E, uint WIDTH, uint N>
METAL_FUNC void gemv_float_rows(
    device const typename E::One* weights, device const float* x, device float* y, thread const Product& p, uint tile, uint lane) {
  const uint first = tile * FLOAT_ROWS;
  float sums[FLOAT_ROWS][N] = {};
  for (uint col = WIDTH * lane; col < p.cols; col += 32 * WIDTH) {
    float w[FLOAT_ROWS][WIDTH];
    #pragma clang loop unroll(full)
    for (uint r = 0; r < FLOAT_ROWS; r++) {
      const bool real = first + r < p.rows;
      device const typename E::One* from = weights + (first + r) * p.cols + col;
      if (WIDTH == 4) {
        typename E::Four four = typename E::Four(0);
        if (real) four = *(device const typename E::Four*)from;
        for (uint b = 0; b < WIDTH; b++) w[r][b] = E::value(four[b]);
      } else {
        w[r][0] = real ? E::value(*from) : 0.0f;
      }
    }
    for (uint n = 0; n < N && n < p.batch; n++) {
      device const float* from = x + n * p.cols + col;
      float values[WIDTH];
      if (WIDTH == 4) {
        const float4 four = *(device const float4*)from;
        for (uint b = 0; b < WIDTH; b++) values[b] = four[b];
      } else {
        values[0] = *from;
      }
      #pragma clang loop unroll(full)
      for (uint r = 0; r < FLOAT_ROWS; r++) {
        for (uint b = 0; b < WIDTH; b++) sums[r][n] += w[r][b] * values[b];
      }
    }
  }
  for (uint r = 0; r < FLOAT_ROWS; r++) {
    for (uint n = 0; n < N; n++) {
      const float sum = simd_sum(sums[r][n]);
      if (lane == 0 && first + r < p.rows && n < p.batch) y[n * p.rows + first + r] = sum;
    }
  }
}

template <typename E, uint WIDTH, uint N>
kernel void gemv_float(
    device const typename E::One* weights [[buffer(0)]],
    device const float* x [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant Product& p [[buffer(3)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Product q = {p.rows, p.cols, p.batch, p.group};
  gemv_float_rows<E, WIDTH, N>(weights, x, y, q, 2 * group + simdgroup, lane);
}

// Up to three matrices of one input.
template <typename E, uint WIDTH>
kernel void gemv_float_together(
    device const typename E::One* weights_a [[buffer(0)]],
    device const typename E::One* weights_b [[buffer(1)]],
    device const typename E::One* weights_c [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant Together& p [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Strip strip = {0, group, 0};
  find_strip(p, group, 2 * FLOAT_ROWS, strip);
  const Product q = {p.rows[strip.matrix], p.cols, 1, p.group};
  gemv_float_rows<E, WIDTH, 1>(
      chosen(strip.matrix, weights_a, weights_b, weights_c), x, y + strip.before, q, 2 * strip.index + simdgroup, lane);
}

#define FLOAT_TOGETHER(NAME, E, WIDTH) \
  template [[host_name("gemv_" #NAME "_" #WIDTH "_together")]] kernel decltype(gemv_float_together<E, WIDTH>) \
      gemv_float_together<E, WIDTH>;
FLOAT_TOGETHER(bf16, Bf16, 1)
FLOAT_TOGETHER(bf16, Bf16, 4)
FLOAT_TOGETHER(f16, F16, 1)
FLOAT_TOGETHER(f16, F16, 4)
FLOAT_TOGETHER(f32, F32, 1)
FLOAT_TOGETHER(f32, F32, 4)

#define FLOAT(NAME, E, WIDTH, N) \
  template [[host_name("gemv_" #NAME "_" #WIDTH "_" #N)]] kernel decltype(gemv_float<E, WIDTH, N>) gemv_float<E, WIDTH, N>;
#define FLOAT_ALL(N) \
  FLOAT(bf16, Bf16, 1, N) FLOAT(bf16, Bf16, 4, N) \
  FLOAT(f16, F16, 1, N) FLOAT(f16, F16, 4, N) \
  FLOAT(f32, F32, 1, N) FLOAT(f32, F32, 4, N)
FLOAT_ALL(1)
FLOAT_ALL(2)
FLOAT_ALL(4)
FLOAT_ALL(8)

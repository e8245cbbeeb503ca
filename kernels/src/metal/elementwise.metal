// The norm and the gated products without a rotation behind, for matrices that want none; and the rotary embedding.
//
// Grid      rms_norm: a threadgroup of 256 threads a row. gated: a thread a value. rope: a thread a pair.
// Moves     each operand once (the norm: the row twice, from the cache).

struct Norm {
  uint cols;
  float eps;
};

// y = x / sqrt(mean(x^2) + eps) * factor, for rows of x [batch, cols].
kernel void rms_norm(
    device const float* x [[buffer(0)]],
    device const float* factor [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant Norm& p [[buffer(3)]],
    threadgroup float* partial [[threadgroup(0)]],  // 32
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  device const float* from = x + row * p.cols;
  const float scale = norm_factor(from, p.cols, p.eps, partial, thread_index, 256, simdgroup, lane);
  for (uint i = thread_index; i < p.cols; i += 256) y[row * p.cols + i] = from[i] * scale * factor[i];
}

// y = activation(gate) * up.
template <Source SOURCE>
kernel void gated(
    device const float* gate [[buffer(0)]],
    device const float* up [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant uint& count [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
  if (i < count) y[i] = (SOURCE == SILU ? silu(gate[i]) : gelu(gate[i])) * up[i];
}

template [[host_name("gated_silu")]] kernel decltype(gated<SILU>) gated<SILU>;
template [[host_name("gated_gelu")]] kernel decltype(gated<GELU>) gated<GELU>;

// Heads of `head_dim` values, of which values i and i + head_dim / 2 are a pair.
struct Heads {
  uint pairs;      // of all heads and positions
  uint positions;
  uint head_dim;
};

// y = x [heads, positions, head_dim] with each pair turned: (a cos - b sin, a sin + b cos).
kernel void rope(
    device const float* x [[buffer(0)]],
    device const float* cosines [[buffer(1)]],  // [positions, head_dim / 2]
    device const float* sines [[buffer(2)]],
    device float* y [[buffer(3)]],
    constant Heads& p [[buffer(4)]],
    uint i [[thread_position_in_grid]]) {
  if (i >= p.pairs) return;
  const uint pairs = p.head_dim / 2, row = i / pairs, pair = i % pairs;
  const uint low = row * p.head_dim + pair, high = low + pairs, at = row % p.positions * pairs + pair;
  const float a = x[low], b = x[high];
  y[low] = a * cosines[at] - b * sines[at];
  y[high] = a * sines[at] + b * cosines[at];
}

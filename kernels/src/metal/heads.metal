// Heads of queries, keys and values as attention wants them: with biases, normalised, turned by their positions, keys and
// values put behind those of earlier positions.
//
// Reads     q f32 [n, heads, head_dim], k and v f32 [n, kv_heads, head_dim].
// Grid      (heads + 2 kv_heads, n) threadgroups of a simdgroup: one head of one position each.
// Moves     each value once (with norms twice, from the cache).
// Aims at   the time of a dispatch.

struct SplitHeads {
  uint heads;
  uint kv_heads;
  uint positions;   // n
  uint head_dim;
  uint start;       // the first one's place among the keys
  uint k_stride;    // values from one head's keys to the next one's
  uint v_stride;
  uint biased;
  uint normed;      // queries and keys: v / sqrt(mean(v^2) + eps) * factor
  float eps;
};

template <typename T>
kernel void split_heads(
    device const float* q [[buffer(0)]],
    device const float* k [[buffer(1)]],
    device const float* v [[buffer(2)]],
    device const float* q_bias [[buffer(3)]],    // [heads, head_dim]
    device const float* k_bias [[buffer(4)]],
    device const float* v_bias [[buffer(5)]],
    device const float* q_factor [[buffer(6)]],  // [head_dim]
    device const float* k_factor [[buffer(7)]],
    device const float* cosines [[buffer(8)]],   // [n, head_dim / 2]
    device const float* sines [[buffer(9)]],
    device float* y [[buffer(10)]],              // queries [heads, n, head_dim]
    device T* keys [[buffer(11)]],               // [kv_heads, .., head_dim]
    device T* values [[buffer(12)]],
    constant SplitHeads& p [[buffer(13)]],
    uint2 at [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint position = at.y, pairs = p.head_dim / 2;
  // 0 for queries, 1 for keys, 2 for values; all threads of a threadgroup have the same.
  const uint kind = at.x < p.heads ? 0 : at.x < p.heads + p.kv_heads ? 1 : 2;
  const uint count = kind == 0 ? p.heads : p.kv_heads;
  const uint head = kind == 0 ? at.x : at.x - p.heads - (kind - 1) * p.kv_heads;
  device const float* row = chosen(kind, q, k, v) + (position * count + head) * p.head_dim;
  device const float* bias = chosen(kind, q_bias, k_bias, v_bias) + head * p.head_dim;
  device const float* factor = kind == 0 ? q_factor : k_factor;
  const bool normed = p.normed && kind < 2;
  float scale = 1;
  if (normed) {
    float sum = 0;
    for (uint i = lane; i < p.head_dim; i += 32) {
      const float value = row[i] + (p.biased ? bias[i] : 0.0f);
      sum += value * value;
    }
    scale = rsqrt(simd_sum(sum) / p.head_dim + p.eps);
  }
  for (uint i = lane; i < pairs; i += 32) {
    float low = row[i], high = row[i + pairs];
    if (p.biased) {
      low += bias[i];
      high += bias[i + pairs];
    }
    if (normed) {
      low *= scale * factor[i];
      high *= scale * factor[i + pairs];
    }
    if (kind < 2) {
      const float cosine = cosines[position * pairs + i], sine = sines[position * pairs + i], before = low;
      low = before * cosine - high * sine;
      high = before * sine + high * cosine;
    }
    if (kind == 0) {
      device float* to = y + (head * p.positions + position) * p.head_dim;
      to[i] = low;
      to[i + pairs] = high;
    } else {
      device T* to = (kind == 1 ? keys + head * p.k_stride : values + head * p.v_stride) + (p.start + position) * p.head_dim;
      to[i] = T(low);
      to[i + pairs] = T(high);
    }
  }
}

template [[host_name("split_heads_f32")]] kernel decltype(split_heads<float>) split_heads<float>;
template [[host_name("split_heads_f16")]] kernel decltype(split_heads<half>) split_heads<half>;

// Heads of queries, keys and values as attention wants them: with biases, normalised, turned by their positions, keys and
// values put behind those of earlier positions.
//
// Reads     q f32 [n, heads, head_dim], k and v f32 [n, kv_heads, head_dim].
// Grid      (heads + 2 kv_heads, n) threadgroups of a simdgroup: one head of one position each.
// Moves     8 bytes an output, into f16 6 (with norms each value twice, the second time from the cache).
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

// One head of one position.
struct Head {
  uint kind;        // 0 of queries, 1 of keys, 2 of values
  uint index;
  device const float* row;
  device const float* bias;
  device const float* factor;
  device const float* cosines;
  device const float* sines;
  float scale;      // of the norm, where there is one
};

// The head of a threadgroup: queries' first, then keys', then values'.
METAL_FUNC void find_head(constant SplitHeads& p, uint at, thread Head& head) {
  head.kind = at < p.heads ? 0 : at < p.heads + p.kv_heads ? 1 : 2;
  head.index = head.kind == 0 ? at : at - p.heads - (head.kind - 1) * p.kv_heads;
}

// The head's operands at a position, of those of all heads.
METAL_FUNC void find_operands(
    constant SplitHeads& p, uint position, device const float* row, device const float* bias, device const float* factor,
    device const float* cosines, device const float* sines, uint lane, thread Head& head) {
  const uint count = head.kind == 0 ? p.heads : p.kv_heads;
  head.row = row + (position * count + head.index) * p.head_dim;
  head.bias = bias + head.index * p.head_dim;
  head.factor = factor;
  head.cosines = cosines + position * (p.head_dim / 2);
  head.sines = sines + position * (p.head_dim / 2);
  // The same for all threads of a threadgroup.
  if (!p.normed || head.kind == 2) return;
  float sum = 0;
  for (uint i = lane; i < p.head_dim; i += 32) {
    const float value = head.row[i] + (p.biased ? head.bias[i] : 0.0f);
    sum += value * value;
  }
  head.scale = rsqrt(simd_sum(sum) / p.head_dim + p.eps);
}

// Channels i and i + head_dim / 2, ready.
METAL_FUNC void ready_pair(constant SplitHeads& p, thread const Head& head, uint i, thread float& low, thread float& high) {
  const uint pairs = p.head_dim / 2;
  low = head.row[i];
  high = head.row[i + pairs];
  if (p.biased) {
    low += head.bias[i];
    high += head.bias[i + pairs];
  }
  if (p.normed && head.kind < 2) {
    low *= head.scale * head.factor[i];
    high *= head.scale * head.factor[i + pairs];
  }
  if (head.kind == 2) return;
  const float before = low;
  low = before * head.cosines[i] - high * head.sines[i];
  high = before * head.sines[i] + high * head.cosines[i];
}

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
  Head head;
  find_head(p, at.x, head);
  find_operands(
      p, position, chosen(head.kind, q, k, v), chosen(head.kind, q_bias, k_bias, v_bias),
      head.kind == 0 ? q_factor : k_factor, cosines, sines, lane, head);
  for (uint i = lane; i < pairs; i += 32) {
    float low, high;
    ready_pair(p, head, i, low, high);
    if (head.kind == 0) {
      device float* to = y + (head.index * p.positions + position) * p.head_dim;
      to[i] = low;
      to[i + pairs] = high;
    } else {
      device T* all = head.kind == 1 ? keys + head.index * p.k_stride : values + head.index * p.v_stride;
      device T* to = all + (p.start + position) * p.head_dim;
      to[i] = T(low);
      to[i + pairs] = T(high);
    }
  }
}

template [[host_name("split_heads_f32")]] kernel decltype(split_heads<float>) split_heads<float>;
template [[host_name("split_heads_f16")]] kernel decltype(split_heads<half>) split_heads<half>;

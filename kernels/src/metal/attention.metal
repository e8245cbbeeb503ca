// Causal grouped-query attention (Dao et al., "FlashAttention", 2022), a query at a time: for decoding.
//
// Reads     q f32 [heads, n, head_dim], k and v f32 or f16 [kv_heads, positions, head_dim] with gaps between heads.
// Grid      (heads, n) threadgroups of 8 simdgroups, which take turns at the keys; a lane holds head_dim / 32 values.
// Moves     the keys and values that the query sees once a query head: 8 or 4 bytes a position and output; the query heads of a
//           key head find them in the cache.
// Aims at   the memory's bandwidth for one query and many keys.
//
// A simdgroup keeps the largest score m, the sum l of exp(score - m), and the values mixed with these weights; a larger
// score shrinks what is kept by exp(m - m'). In the end the simdgroups' mixes are joined in the same way.

struct AttentionShape {
  uint heads;
  uint kv_heads;
  uint queries;
  uint positions;
  uint head_dim;
  uint k_stride;    // values from one head's matrix to the next one's
  uint v_stride;
  uint window;      // a query sees this many positions; 0 for all before it
  float scale;
  float softcap;    // scores become softcap tanh(score / softcap); 0 for as they are
};

constant constexpr uint ATTENTION_SIMDGROUPS = 8;
// Below any score, and finite: fast mathematics does not know infinities.
constant constexpr float LEAST = -3.0e38f;

template <typename T, uint PER_LANE>
kernel void attention(
    device const float* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device float* y [[buffer(3)]],                   // [n, heads, head_dim]
    constant AttentionShape& p [[buffer(4)]],
    threadgroup float* mixes [[threadgroup(0)]],     // [ATTENTION_SIMDGROUPS, head_dim]
    threadgroup float* partial [[threadgroup(1)]],   // m, then l, of each simdgroup
    uint2 at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint head = at.x, query = at.y, kv_head = head / (p.heads / p.kv_heads);
  float asked[PER_LANE], mix[PER_LANE] = {};
  for (uint i = 0; i < PER_LANE; i++) {
    const uint c = lane + 32 * i;
    asked[i] = c < p.head_dim ? q[(head * p.queries + query) * p.head_dim + c] * p.scale : 0.0f;
  }
  const uint end = p.positions - p.queries + query + 1;
  const uint begin = p.window == 0 || end < p.window ? 0 : end - p.window;
  float most = LEAST, sum = 0;
  for (uint j = begin + simdgroup; j < end; j += ATTENTION_SIMDGROUPS) {
    float score = 0;
    for (uint i = 0; i < PER_LANE; i++) {
      const uint c = lane + 32 * i;
      if (c < p.head_dim) score += asked[i] * float(k[kv_head * p.k_stride + j * p.head_dim + c]);
    }
    score = simd_sum(score);
    if (p.softcap > 0) score = p.softcap * precise::tanh(score / p.softcap);
    const float larger = max(most, score), keep = exp(most - larger), weight = exp(score - larger);
    most = larger;
    sum = sum * keep + weight;
    for (uint i = 0; i < PER_LANE; i++) {
      const uint c = lane + 32 * i;
      if (c < p.head_dim) mix[i] = mix[i] * keep + weight * float(v[kv_head * p.v_stride + j * p.head_dim + c]);
    }
  }
  for (uint i = 0; i < PER_LANE; i++) {
    const uint c = lane + 32 * i;
    if (c < p.head_dim) mixes[simdgroup * p.head_dim + c] = mix[i];
  }
  if (lane == 0) {
    partial[simdgroup] = most;
    partial[ATTENTION_SIMDGROUPS + simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  most = LEAST;
  for (uint s = 0; s < ATTENTION_SIMDGROUPS; s++) most = max(most, partial[s]);
  sum = 0;
  for (uint s = 0; s < ATTENTION_SIMDGROUPS; s++) sum += partial[ATTENTION_SIMDGROUPS + s] * exp(partial[s] - most);
  for (uint c = thread_index; c < p.head_dim; c += 32 * ATTENTION_SIMDGROUPS) {
    float value = 0;
    for (uint s = 0; s < ATTENTION_SIMDGROUPS; s++) value += mixes[s * p.head_dim + c] * exp(partial[s] - most);
    y[(query * p.heads + head) * p.head_dim + c] = value / sum;
  }
}

#define ATTENTION(PER_LANE) \
  template [[host_name("attention_f32_" #PER_LANE)]] kernel decltype(attention<float, PER_LANE>) attention<float, PER_LANE>; \
  template [[host_name("attention_f16_" #PER_LANE)]] kernel decltype(attention<half, PER_LANE>) attention<half, PER_LANE>;
ATTENTION(1)
ATTENTION(2)
ATTENTION(4)
ATTENTION(8)

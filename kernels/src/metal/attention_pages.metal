// Causal grouped-query attention over pages (pages.metal), a query at a time: for decoding. Scores are taken against packed
// keys, packed values are mixed, and the mix is rotated back once.
//
// Reads     q f32 [heads, n, head_dim], rotated as the keys are; pages, packed or as they came, as the query sees them.
// Grid      (heads, n) threadgroups of 8 simdgroups, which take turns at the pages.
// Moves     the units that the query sees once a query head: at 8 and 4 bits and a head_dim of 128, 196 bytes a position and
//           head, against 512 of f16; the query heads of a key head find them in the cache.
// Aims at   the memory's bandwidth for one query and many pages.
//
// A unit is read by four lanes. A lane adds up the scores of 16 positions over every eighth channel; then the eight lanes of a
// quarter give each other their sums, and each has the scores of two positions. Values the other way round: of every eighth position
// a lane mixes 16 channels of each unit, which are added up over lanes once, in the end.

template <uint U>
kernel void attention_pages(
    device const float* q [[buffer(0)]],
    device const half* recent_keys [[buffer(1)]],
    device const half* recent_values [[buffer(2)]],
    device const uchar* packed_keys [[buffer(3)]],
    device const uchar* packed_values [[buffer(4)]],
    device const half* key_scales [[buffer(5)]],
    device const half* value_scales [[buffer(6)]],
    constant uint* signs [[buffer(7)]],              // of 256 channels
    constant float* table [[buffer(8)]],             // [2, 16], levels of keys and of values
    device float* y [[buffer(9)]],                   // [n, heads, head_dim]
    constant AttentionShape& p [[buffer(10)]],
    constant Pages& pages [[buffer(11)]],
    threadgroup float* levels [[threadgroup(0)]],    // [2, 16]
    threadgroup float* mixes [[threadgroup(1)]],     // [ATTENTION_SIMDGROUPS, head_dim]
    threadgroup float* partial [[threadgroup(2)]],   // the largest score, then the sum, of each simdgroup
    uint2 at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  if (thread_index < 32) levels[thread_index] = table[thread_index];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const uint head = at.x, kv_head = head / (p.heads / p.kv_heads), position = p.positions - p.queries + at.y;
  const uint end = position + 1, begin = p.window == 0 || end < p.window ? 0 : end - p.window;
  const uint key_run = run_of(pages.bits[KEYS]), value_run = run_of(pages.bits[VALUES]);
  const uint eighth = lane / 4, quarter = lane % 4;
  device const float* asked = q + (head * p.queries + at.y) * p.head_dim;
  float mix[U][16] = {};
  float most = LEAST, sum = 0;
  for (uint page = begin / 64 + simdgroup; page * 64 < end; page += ATTENTION_SIMDGROUPS) {
    const Units keys = seen_units(pages, KEYS, recent_keys, packed_keys, key_scales, position / 64, page, kv_head);
    float scores[16] = {};
    for (uint channel = eighth; channel < p.head_dim; channel += 8) {
      add_quarter(
          keys.first + channel * 8 * keys.bits, keys.bits, key_run, quarter, levels, p.scale * asked[channel], scores);
    }
    scatter_sums(scores, lane);
    const Units values = seen_units(pages, VALUES, recent_values, packed_values, value_scales, position / 64, page, kv_head);
    bool visible[2];
    float larger = most;
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 2; i++) {
      const uint place = place_of(key_run, quarter, 2 * eighth + i);
      visible[i] = page * 64 + place >= begin && page * 64 + place < end;
      if (keys.bits < 16) scores[i] *= float(keys.scales[place]);
      if (p.softcap > 0) scores[i] = p.softcap * precise::tanh(scores[i] / p.softcap);
      if (visible[i]) larger = max(larger, scores[i]);
    }
    larger = simd_max(larger);
    const float keep = exp(most - larger);
    most = larger;
    sum *= keep;
    float weights[2];
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 2; i++) {
      weights[i] = visible[i] ? exp(scores[i] - most) : 0.0f;
      sum += weights[i];
      if (values.bits < 16) weights[i] *= float(values.scales[place_of(key_run, quarter, 2 * eighth + i)]);
    }
    #pragma clang loop unroll(full)
    for (uint u = 0; u < U; u++) {
      for (uint i = 0; i < 16; i++) mix[u][i] *= keep;
    }
    // The four lanes that share a unit have the weights of eight positions.
    #pragma clang loop unroll(full)
    for (uint t = 0; t < 8; t++) {
      const float weight = simd_shuffle(weights[t / 4], ushort(4 * eighth + t % 4));
      const uint place = place_of(key_run, t % 4, 2 * eighth + t / 4);
      if (page * 64 + place >= end) continue;
      #pragma clang loop unroll(full)
      for (uint u = 0; u < U; u++) {
        device const uchar* unit = values.first + (u * 64 + place) * 8 * values.bits;
        add_quarter(unit, values.bits, value_run, quarter, levels + 16, weight, mix[u]);
      }
    }
  }
  #pragma clang loop unroll(full)
  for (uint u = 0; u < U; u++) {
    scatter_sums(mix[u], lane);
    for (uint i = 0; i < 2; i++) {
      mixes[simdgroup * p.head_dim + u * 64 + place_of(value_run, quarter, 2 * eighth + i)] = mix[u][i];
    }
  }
  sum = simd_sum(sum);
  if (lane == 0) {
    partial[simdgroup] = most;
    partial[ATTENTION_SIMDGROUPS + simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup > 0) return;
  most = LEAST;
  for (uint s = 0; s < ATTENTION_SIMDGROUPS; s++) most = max(most, partial[s]);
  sum = 0;
  for (uint s = 0; s < ATTENTION_SIMDGROUPS; s++) sum += partial[ATTENTION_SIMDGROUPS + s] * exp(partial[s] - most);
  float found[8] = {};
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 2 * U; e++) {
    for (uint s = 0; s < ATTENTION_SIMDGROUPS; s++) {
      found[e] += mixes[s * p.head_dim + lane + 32 * e] * exp(partial[s] - most);
    }
    found[e] /= sum;
  }
  if (pages.bits[VALUES] < 16) rotate_head(found, pages.block, signs, true, lane);
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 2 * U; e++) y[(at.y * p.heads + head) * p.head_dim + lane + 32 * e] = found[e];
}

#define ATTENTION_PAGES(U) \
  template [[host_name("attention_pages_" #U)]] kernel decltype(attention_pages<U>) attention_pages<U>;
ATTENTION_PAGES(1)
ATTENTION_PAGES(2)
ATTENTION_PAGES(3)
ATTENTION_PAGES(4)

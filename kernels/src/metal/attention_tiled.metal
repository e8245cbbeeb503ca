// Causal grouped-query attention for many queries (Dao et al., "FlashAttention", 2022), with 8 x 8 matrices that a simdgroup
// multiplies at once: for prompts. Over keys and values in whole tensors or in pages.
//
// Reads     q f32 [heads, n, head_dim], and keys and values as attention.metal or attention_pages.metal have them.
// Grid      (kv_heads, pages that the queries are in * tiles of a page) threadgroups. A tile is 32 queries (16 in heads of more
//           than 128): of positions of one page, those of all heads that share a key head, so that a page is recent to all or
//           none of them.
// Moves     each byte of keys and values that the tile sees once, into threadgroup memory, as f32: 1 / 32 of what a
//           query at a time takes, in heads of more than 128 channels 1 / 16.
// Aims at   the arithmetic of simdgroup matrices: 4 head_dim operations a query and key.
//
// A simdgroup has eight queries in registers, and their mixes. Blocks of as many keys as the tile has queries come into threadgroup
// memory, then the values of the same positions in their place. Scores go through threadgroup memory to be seen in rows: four lanes to a
// query keep its largest score m and the sum l; the mix shrinks by exp(m - m') as a product with a diagonal matrix.

// Sizes of a tile for heads of up to WIDTH channels.
template <uint WIDTH>
struct Tile {
  static constexpr constant uint ROWS = WIDTH > 128 ? 16 : 32;       // queries, and keys of a block; they divide the 64 of a page
  static constexpr constant uint THREADS = 4 * ROWS;                 // a simdgroup for eight queries
  static constexpr constant uint STRIDE = WIDTH + 4;                 // from one row of the block to the next
  static constexpr constant uint SCORES = ROWS + 4;                  // and of the scores
};

// Keys and values in whole tensors.
template <typename T>
struct TensorBlocks {
  device const T* k;   // of the key head
  device const T* v;
  uint head_dim;

  static constexpr constant uint GRAIN = 1;

  METAL_FUNC uint position(uint block, uint slot, uint rows) const { return block * rows + slot; }

  METAL_FUNC void load(
      uint side, uint block, uint rows, uint end, threadgroup float* to, uint stride, uint width, uint thread_index,
      uint threads) const {
    device const T* from = side == KEYS ? k : v;
    for (uint i = thread_index; i < rows * width; i += threads) {
      const uint slot = i / width, channel = i % width, at = position(block, slot, rows);
      to[slot * stride + channel] = at < end && channel < head_dim ? float(from[at * head_dim + channel]) : 0.0f;
    }
  }
};

// Keys and values in pages. The positions of a block are those whose numbers share bytes with each other in units of keys: of
// b bits, 4 bytes hold 32 / b numbers, 8 b apart.
struct PageBlocks {
  device const half* recent[2];
  device const uchar* packed[2];
  device const half* scales[2];
  threadgroup const float* levels;  // [2, 16]
  constant Pages* pages;
  uint query_page;
  uint kv_head;

  static constexpr constant uint GRAIN = 64;

  METAL_FUNC Units units(uint side, uint page) const {
    return seen_units(*pages, side, recent[side], packed[side], scales[side], query_page, page, kv_head);
  }

  // The position of a slot, of `rows`, in a page.
  METAL_FUNC uint place(uint block, uint slot, uint rows, uint bits) const {
    if (bits == 16) return block * rows + slot;
    const uint bytes = rows * bits / 8;
    return block * bytes + slot % bytes + 8 * bits * (slot / bytes);
  }

  METAL_FUNC uint position(uint block, uint slot, uint rows) const {
    const uint a_page = 64 / rows, page = block / a_page;
    return page * 64 + place(block % a_page, slot, rows, units(KEYS, page).bits);
  }

  METAL_FUNC float number(thread const Units& u, uint side, uint word, uint i) const {
    if (u.bits == 16) return float(as_type<half2>(word)[i]);
    if (u.bits == 8) return float(int(word << (24 - 8 * i)) >> 24);
    return levels[16 * side + (word >> (8 * (i % 4) + u.bits * (i / 4)) & ((1u << u.bits) - 1))];
  }

  METAL_FUNC void load(
      uint side, uint block, uint rows, uint end, threadgroup float* to, uint stride, uint width, uint thread_index,
      uint threads) const {
    const uint a_page = 64 / rows, page = block / a_page, part = block % a_page, head_dim = pages->head_dim;
    const Units u = units(side, page);
    const uint key_bits = units(KEYS, page).bits, numbers = 32 / u.bits;
    if (side == KEYS) {
      // Of each channel's unit, the words that hold the block's positions.
      const uint words = rows / numbers;
      for (uint i = thread_index; i < width * words; i += threads) {
        const uint channel = i / words, first = i % words;
        uint word = 0;
        if (channel < head_dim) {
          word = ((device const uint*)(u.first + channel * 8 * u.bits))[part * words + first];
        }
        for (uint n = 0; n < numbers; n++) {
          // Four bytes hold four numbers side by side, in f16 two; those of the next bits are as far away as the block's bytes.
          const uint slot = u.bits == 16 ? 2 * first + n : 4 * first + n % 4 + rows * u.bits / 8 * (n / 4);
          const uint at = place(part, slot, rows, u.bits);
          const bool there = page * 64 + at < end && channel < head_dim;
          const float scale = u.bits < 16 && there ? float(u.scales[at]) : 1.0f;
          to[slot * stride + channel] = there ? number(u, side, word, n) * scale : 0.0f;
        }
      }
      return;
    }
    // Of each position, the words of its units.
    const uint a_unit = 2 * u.bits, words = width / 64 * a_unit;
    for (uint i = thread_index; i < rows * words; i += threads) {
      const uint slot = i / words, unit = i % words / a_unit, first = i % a_unit, at = place(part, slot, rows, key_bits);
      const bool there = page * 64 + at < end && unit * 64 < head_dim;
      uint word = 0;
      if (there) word = ((device const uint*)(u.first + (unit * 64 + at) * 8 * u.bits))[first];
      const float scale = u.bits < 16 && there ? float(u.scales[at]) : 1.0f;
      for (uint n = 0; n < numbers; n++) {
        const uint channel = u.bits == 16 ? 2 * first + n : 4 * first + n % 4 + 8 * u.bits * (n / 4);
        to[slot * stride + unit * 64 + channel] = there ? number(u, side, word, n) * scale : 0.0f;
      }
    }
  }
};

// A tile's queries, to y [n, heads, head_dim]. `block` holds a row a query, `scores` a row a query and 64 numbers a simdgroup.
template <uint WIDTH, typename Blocks>
METAL_FUNC void attend_tile(
    thread const Blocks& blocks, device const float* q, device float* y, constant AttentionShape& p, bool rotated,
    uint rotation, constant uint* signs, threadgroup float* block, threadgroup float* scores, uint2 at, uint thread_index,
    uint simdgroup, uint lane) {
  constexpr uint ROWS = Tile<WIDTH>::ROWS, THREADS = Tile<WIDTH>::THREADS, STRIDE = Tile<WIDTH>::STRIDE;
  constexpr uint SCORES = Tile<WIDTH>::SCORES;
  const uint group = p.heads / p.kv_heads, past = p.positions - p.queries;
  const uint tiles = 64 * group / ROWS, page = past / 64 + at.y / tiles, first_row = at.y % tiles * ROWS;
  // Row r of a page is head r % group of position r / group. The tile's positions, of those that ask:
  const uint start = max(page * 64 + first_row / group, past);
  const uint stop = min(page * 64 + (first_row + ROWS - 1) / group + 1, p.positions);
  if (start >= stop) return;
  for (uint i = thread_index; i < ROWS * WIDTH; i += THREADS) {
    const uint row = first_row + i / WIDTH, channel = i % WIDTH, position = page * 64 + row / group;
    const bool there = position >= past && position < p.positions && channel < p.head_dim;
    const uint head = at.x * group + row % group;
    block[i / WIDTH * STRIDE + channel] =
        there ? q[(head * p.queries + position - past) * p.head_dim + channel] * p.scale : 0.0f;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 asked[WIDTH / 8], mix[WIDTH / 8];
  #pragma clang loop unroll(full)
  for (uint i = 0; i < WIDTH / 8; i++) {
    simdgroup_load(asked[i], block + 8 * simdgroup * STRIDE + 8 * i, STRIDE);
    mix[i] = simdgroup_float8x8(0.0f);
  }
  // The query that this lane sees scores of, with three others.
  const uint row = first_row + 8 * simdgroup + lane / 4, position = page * 64 + row / group;
  const uint end = position >= past && position < p.positions ? position + 1 : 0;
  const uint begin = p.window == 0 || end < p.window ? 0 : end - p.window;
  threadgroup float* own = scores + simdgroup * (8 * SCORES + 64);
  threadgroup float* diagonal = own + 8 * SCORES;
  float most = LEAST, sum = 0;
  const uint from = p.window == 0 || start + 1 < p.window ? 0 : start + 1 - p.window;
  const uint grain = max(Blocks::GRAIN, ROWS);
  for (uint b = from / grain * (grain / ROWS); b < (stop + grain - 1) / grain * (grain / ROWS); b++) {
    // What was in the block has been read.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    blocks.load(KEYS, b, ROWS, stop, block, STRIDE, WIDTH, thread_index, THREADS);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    #pragma clang loop unroll(full)
    for (uint j = 0; j < ROWS / 8; j++) {
      simdgroup_float8x8 score = simdgroup_float8x8(0.0f);
      #pragma clang loop unroll(full)
      for (uint i = 0; i < WIDTH / 8; i++) {
        simdgroup_float8x8 keys;
        simdgroup_load(keys, block + 8 * j * STRIDE + 8 * i, STRIDE, ulong2(0), true);
        simdgroup_multiply_accumulate(score, asked[i], keys, score);
      }
      simdgroup_store(score, own + 8 * j, SCORES);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    blocks.load(VALUES, b, ROWS, stop, block, STRIDE, WIDTH, thread_index, THREADS);
    float found[ROWS / 4], larger = most;
    #pragma clang loop unroll(full)
    for (uint j = 0; j < ROWS / 4; j++) {
      const uint slot = lane % 4 + 4 * j, key = blocks.position(b, slot, ROWS);
      found[j] = own[lane / 4 * SCORES + slot];
      if (p.softcap > 0) found[j] = p.softcap * precise::tanh(found[j] / p.softcap);
      if (key < begin || key >= end) found[j] = LEAST;
      larger = max(larger, found[j]);
    }
    larger = max(larger, simd_shuffle_xor(larger, ushort(1)));
    larger = max(larger, simd_shuffle_xor(larger, ushort(2)));
    const float keep = exp(most - larger);
    most = larger;
    sum *= keep;
    #pragma clang loop unroll(full)
    for (uint j = 0; j < ROWS / 4; j++) {
      // What is not seen has no weight, nor has anything where nothing is seen yet.
      const float weight = found[j] == LEAST ? 0.0f : exp(found[j] - most);
      sum += weight;
      own[lane / 4 * SCORES + lane % 4 + 4 * j] = weight;
    }
    #pragma clang loop unroll(full)
    for (uint c = 0; c < 2; c++) {
      diagonal[lane / 4 * 8 + lane % 4 * 2 + c] = lane / 4 == lane % 4 * 2 + c ? keep : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 weights[ROWS / 8], shrink;
    simdgroup_load(shrink, diagonal, 8);
    #pragma clang loop unroll(full)
    for (uint j = 0; j < ROWS / 8; j++) simdgroup_load(weights[j], own + 8 * j, SCORES);
    #pragma clang loop unroll(full)
    for (uint i = 0; i < WIDTH / 8; i++) {
      simdgroup_float8x8 more = simdgroup_float8x8(0.0f);
      simdgroup_multiply_accumulate(more, shrink, mix[i], more);
      #pragma clang loop unroll(full)
      for (uint j = 0; j < ROWS / 8; j++) {
        simdgroup_float8x8 values;
        simdgroup_load(values, block + 8 * j * STRIDE + 8 * i, STRIDE);
        simdgroup_multiply_accumulate(more, weights[j], values, more);
      }
      mix[i] = more;
    }
  }
  sum += simd_shuffle_xor(sum, ushort(1));
  sum += simd_shuffle_xor(sum, ushort(2));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* mixed = block + 8 * simdgroup * STRIDE;
  #pragma clang loop unroll(full)
  for (uint i = 0; i < WIDTH / 8; i++) simdgroup_store(mix[i], mixed + 8 * i, STRIDE);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint r = 0; r < 8; r++) {
    const uint row = first_row + 8 * simdgroup + r, position = page * 64 + row / group;
    const float total = simd_shuffle(sum, ushort(4 * r));
    float v[8] = {};
    #pragma clang loop unroll(full)
    for (uint e = 0; e < WIDTH / 32; e++) v[e] = mixed[r * STRIDE + lane + 32 * e] / max(total, 1e-30f);
    if (rotated) rotate_head(v, rotation, signs, true, lane);
    if (position < past || position >= p.positions) continue;
    device float* to = y + ((position - past) * p.heads + at.x * group + row % group) * p.head_dim;
    #pragma clang loop unroll(full)
    for (uint e = 0; e < WIDTH / 32; e++) {
      if (lane + 32 * e < p.head_dim) to[lane + 32 * e] = v[e];
    }
  }
}

template <typename T, uint WIDTH>
kernel void attention_tiled(
    device const float* q [[buffer(0)]],
    device const T* k [[buffer(1)]],
    device const T* v [[buffer(2)]],
    device float* y [[buffer(3)]],                   // [n, heads, head_dim]
    constant AttentionShape& p [[buffer(4)]],
    threadgroup float* block [[threadgroup(0)]],     // [ROWS, STRIDE]
    threadgroup float* scores [[threadgroup(1)]],    // [simdgroups, 8 SCORES + 64]
    uint2 at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const TensorBlocks<T> blocks = {k + at.x * p.k_stride, v + at.x * p.v_stride, p.head_dim};
  attend_tile<WIDTH>(blocks, q, y, p, false, 0, nullptr, block, scores, at, thread_index, simdgroup, lane);
}

template <uint WIDTH>
kernel void attention_pages_tiled(
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
    threadgroup float* block [[threadgroup(1)]],     // [ROWS, STRIDE]
    threadgroup float* scores [[threadgroup(2)]],    // [simdgroups, 8 SCORES + 64]
    uint2 at [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  if (thread_index < 32) levels[thread_index] = table[thread_index];
  const uint tiles = 64 * (p.heads / p.kv_heads) / Tile<WIDTH>::ROWS;
  const PageBlocks blocks = {
      {recent_keys, recent_values}, {packed_keys, packed_values}, {key_scales, value_scales}, levels, &pages,
      (p.positions - p.queries) / 64 + at.y / tiles, at.x};
  const bool rotated = pages.bits[VALUES] < 16;
  attend_tile<WIDTH>(blocks, q, y, p, rotated, pages.block, signs, block, scores, at, thread_index, simdgroup, lane);
}

#define ATTENTION_TILED(WIDTH) \
  template [[host_name("attention_tiled_f32_" #WIDTH)]] kernel decltype(attention_tiled<float, WIDTH>) attention_tiled<float, WIDTH>; \
  template [[host_name("attention_tiled_f16_" #WIDTH)]] kernel decltype(attention_tiled<half, WIDTH>) attention_tiled<half, WIDTH>; \
  template [[host_name("attention_pages_tiled_" #WIDTH)]] kernel decltype(attention_pages_tiled<WIDTH>) attention_pages_tiled<WIDTH>;
ATTENTION_TILED(64)
ATTENTION_TILED(128)
ATTENTION_TILED(256)

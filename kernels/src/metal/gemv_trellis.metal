// y [batch, rows] = x [batch, cols] W^T for batch <= 8 and the trellis codes tcq2, tcq3, tcq4, tcq5.
//
// Reads     codes [ceil(rows / 16), cols / 16 tiles of 32 K bytes], scales f16 [rows], table i8 [256], x f32.
// Grid      rows / 16 threadgroups of 4 simdgroups; they share 16 rows and take turns at runs of 4 tiles.
// Moves     each code once, x once for 16 rows (from the cache): K cols / 8 + 6 bytes an output.
// Aims at   the memory's bandwidth: 32 lanes read 128 K consecutive bytes at a time.
//
// Weight i of a tile, row by row, has a window of 12 bits from bit K i on; its level is looked up by the lowest and the highest four
// of them. Lane l takes rows 2 (l % 8) and 2 (l % 8) + 1 of tile l / 8 of the run: 32 weights in K words. The last windows
// reach up to 12 - K bits into the next lane's first word, or around the tile's end into its first.

constant constexpr uint TRELLIS_SIMDGROUPS = 4;

// What window i is looked up by, of the 32 that begin in `words`, of which the last is the next lane's first.
template <uint K>
METAL_FUNC uint pair(thread const uint* words, uint i) {
  const uint at = K * i / 32, shift = K * i % 32;
  const uint above = shift > 20 ? words[at + 1] << (32 - shift) : 0;
  return pair_of((words[at] >> shift) | above);
}

// The rows of one strip. `partial` is [TRELLIS_SIMDGROUPS, N, 16].
template <uint K, uint N>
METAL_FUNC void gemv_trellis_strip(
    device const uint* codes, device const half* scales, constant char* table, device const float* x, device float* y,
    thread const Product& p, threadgroup float* levels, threadgroup float* partial,
    uint strip, uint thread_index, uint simdgroup, uint lane) {
  for (uint i = thread_index; i < 256; i += 32 * TRELLIS_SIMDGROUPS) levels[i] = float(table[i]);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const uint tiles = p.cols / 16;
  float sums[2][N] = {};
  for (uint start = 4 * simdgroup; start < tiles; start += 4 * TRELLIS_SIMDGROUPS) {
    const uint tile = start + lane / 8;
    const bool inside = tile < tiles;
    uint words[K + 1] = {};
    if (inside) {
      device const uint* here = codes + ((strip * tiles + tile) * 8 + lane % 8) * K;
      #pragma clang loop unroll(full)
      for (uint i = 0; i < K; i++) words[i] = here[i];
    }
    words[K] = simd_shuffle(words[0], ushort((lane & ~7u) | ((lane + 1) & 7u)));
    float level[32];
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 32; i++) level[i] = levels[pair<K>(words, i)];
    for (uint n = 0; n < N; n++) {
      if (inside && n < p.batch) {
        device const float4* from = (device const float4*)(x + n * p.cols + 16 * tile);
        #pragma clang loop unroll(full)
        for (uint q = 0; q < 4; q++) {
          const float4 four = from[q];
          for (uint b = 0; b < 4; b++) {
            sums[0][n] += level[4 * q + b] * four[b];
            sums[1][n] += level[16 + 4 * q + b] * four[b];
          }
        }
      }
    }
  }
  // Lanes that are 8 apart hold parts of the same rows; so do the simdgroups.
  for (uint r = 0; r < 2; r++) {
    for (uint n = 0; n < N; n++) {
      float sum = sums[r][n];
      sum += simd_shuffle_xor(sum, ushort(8));
      sum += simd_shuffle_xor(sum, ushort(16));
      if (lane < 8) partial[(simdgroup * N + n) * 16 + 2 * lane + r] = sum;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < 16 * N; i += 32 * TRELLIS_SIMDGROUPS) {
    const uint row = 16 * strip + i % 16, n = i / 16;
    if (row < p.rows && n < p.batch) {
      float sum = 0;
      for (uint s = 0; s < TRELLIS_SIMDGROUPS; s++) sum += partial[s * 16 * N + i];
      y[n * p.rows + row] = sum * (float(scales[row]) / 32);
    }
  }
}

template <uint K, uint N>
kernel void gemv_trellis(
    device const uint* codes [[buffer(0)]],
    device const half* scales [[buffer(1)]],
    constant char* table [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant Product& p [[buffer(5)]],
    threadgroup float* levels [[threadgroup(0)]],
    threadgroup float* partial [[threadgroup(1)]],
    uint strip [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Product q = {p.rows, p.cols, p.batch, p.group};
  gemv_trellis_strip<K, N>(codes, scales, table, x, y, q, levels, partial, strip, thread_index, simdgroup, lane);
}

// Up to three matrices of one input, each in a trellis code of its own.
kernel void gemv_trellis_together(
    device const uint* codes_a [[buffer(0)]],
    device const uint* codes_b [[buffer(1)]],
    device const uint* codes_c [[buffer(2)]],
    device const half* scales_a [[buffer(3)]],
    device const half* scales_b [[buffer(4)]],
    device const half* scales_c [[buffer(5)]],
    constant char* table_a [[buffer(6)]],
    constant char* table_b [[buffer(7)]],
    constant char* table_c [[buffer(8)]],
    device const float* x [[buffer(9)]],
    device float* y [[buffer(10)]],
    constant Together& p [[buffer(11)]],
    threadgroup float* levels [[threadgroup(0)]],
    threadgroup float* partial [[threadgroup(1)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Strip strip = {0, group, 0};
  find_strip(p, group, 16, strip);
  device const uint* codes = chosen(strip.matrix, codes_a, codes_b, codes_c);
  device const half* scales = chosen(strip.matrix, scales_a, scales_b, scales_c);
  constant char* table = chosen(strip.matrix, table_a, table_b, table_c);
  device float* to = y + strip.before;
  const Product q = {p.rows[strip.matrix], p.cols, 1, p.group};
  #define TRELLIS_STRIP(K) \
    gemv_trellis_strip<K, 1>(codes, scales, table, x, to, q, levels, partial, strip.index, thread_index, simdgroup, lane)
  // The same for all threads of a threadgroup.
  switch (p.bits[strip.matrix]) {
    case 2: TRELLIS_STRIP(2); break;
    case 3: TRELLIS_STRIP(3); break;
    case 4: TRELLIS_STRIP(4); break;
    default: TRELLIS_STRIP(5);
  }
  #undef TRELLIS_STRIP
}

#define TRELLIS(K, N) \
  template [[host_name("gemv_tcq" #K "_" #N)]] kernel decltype(gemv_trellis<K, N>) gemv_trellis<K, N>;
#define TRELLIS_ALL(N) TRELLIS(2, N) TRELLIS(3, N) TRELLIS(4, N) TRELLIS(5, N)
TRELLIS_ALL(1)
TRELLIS_ALL(2)
TRELLIS_ALL(4)
TRELLIS_ALL(8)

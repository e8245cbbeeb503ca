// y [batch, rows] = x [batch, cols] W^T for batch <= 8 and codes in units of 64: nf2, int3, int4r, int4, int8.
//
// Reads     codes [rows, cols / 64 units], scales and mins f16 [rows, cols / group], x f32, as docs/format.md has them.
// Grid      rows / 8 threadgroups of 2 simdgroups; a simdgroup multiplies 4 rows.
// Moves     each code once, each scale once a simdgroup, x once for 4 rows (from the cache):
//           (bits / 8 + 2 / group) cols + 4 bytes an output, int4 with its minima 2 / group cols more.
// Aims at   the memory's bandwidth: 32 lanes read 128 consecutive bytes of a row at a time.
//
// Word k of a unit holds codes of W = 32 / BITS columns (2 bits: 16, and 3 bits also have a high bit each in 8 bytes
// behind; 4 bits: 8; 8 bits: 4), in quads of four consecutive columns: quad q begins at column 64/QUADS q + 4 k.

constant constexpr uint UNIT_ROWS = 4;

// Byte b, code q of a word.
template <uint BITS>
METAL_FUNC uint code(uint word, uint q, uint b) {
  constexpr uint LOW = BITS == 3 ? 2 : BITS;
  return (word >> (8 * b + LOW * q)) & ((1u << LOW) - 1);
}

template <uint BITS, bool TABLE, bool MINS, uint N>
METAL_FUNC void gemv_units_rows(
    device const uint* codes, device const half* scales, device const half* mins,
    threadgroup const float* levels, float unit, device const float* x, device float* y,
    thread const Product& p, uint tile, uint lane) {
  constexpr uint LOW = BITS == 3 ? 2 : BITS;
  constexpr uint QUADS = 8 / LOW;               // of a word
  constexpr uint WORDS = 16 / QUADS;            // of a unit, without the high bits
  constexpr uint STRIDE = 2 * BITS;             // words of a unit, with them
  const uint units = p.cols / 64, words = units * WORDS, groups = p.cols / p.group;

  float sums[UNIT_ROWS][N] = {};
  for (uint start = 0; start < words; start += 32) {
    const uint unit_of_row = (start + lane) / WORDS, k = (start + lane) % WORDS;
    const bool inside = start + lane < words;
    float level[UNIT_ROWS][4 * QUADS];
    float scale[UNIT_ROWS][2] = {}, minimum[UNIT_ROWS][2] = {};
    #pragma clang loop unroll(full)
    for (uint r = 0; r < UNIT_ROWS; r++) {
      const uint row = tile * UNIT_ROWS + r;
      const bool real = inside && row < p.rows;
      uint word = 0, high = 0;
      if (real) {
        device const uint* here = codes + (row * units + unit_of_row) * STRIDE;
        word = here[k];
        // The unit's first two lanes also fetch its high bits; the other two get them from there.
        if (BITS == 3 && k < 2) high = here[WORDS + k];
        if (MINS) {
          for (uint half_of_unit = 0; half_of_unit < 2; half_of_unit++) {
            const uint g = row * groups + 2 * unit_of_row + half_of_unit;
            scale[r][half_of_unit] = float(scales[g]);
            minimum[r][half_of_unit] = float(mins[g]);
          }
        } else {
          scale[r][0] = float(scales[row * groups + 64 * unit_of_row / p.group]);
        }
      }
      uint high0 = 0, high1 = 0;
      if (BITS == 3) {
        high0 = simd_shuffle(high, ushort(lane & ~3u)) >> (4 * k);
        high1 = simd_shuffle(high, ushort((lane & ~3u) | 1u)) >> (4 * k);
      }
      #pragma clang loop unroll(full)
      for (uint q = 0; q < QUADS; q++) {
        #pragma clang loop unroll(full)
        for (uint b = 0; b < 4; b++) {
          if (BITS == 8) {
            level[r][b] = float(int(word << (24 - 8 * b)) >> 24);
          } else {
            uint c = code<BITS>(word, q, b);
            // The high bit of column 16 q + 4 k + b.
            if (BITS == 3) c |= (((q < 2 ? high0 : high1) >> (16 * (q % 2) + b)) & 1) << 2;
            level[r][4 * q + b] = TABLE ? levels[c] : float(c);
          }
        }
      }
    }
    for (uint n = 0; n < N; n++) {
      // Past the last input or column, 0 times something finite.
      float values[4 * QUADS] = {};
      if (inside && n < p.batch) {
        device const float* from = x + n * p.cols + 64 * unit_of_row + 4 * k;
        #pragma clang loop unroll(full)
        for (uint q = 0; q < QUADS; q++) {
          const float4 four = *(device const float4*)(from + 64 / QUADS * q);
          for (uint b = 0; b < 4; b++) values[4 * q + b] = four[b];
        }
      }
      #pragma clang loop unroll(full)
      for (uint r = 0; r < UNIT_ROWS; r++) {
        #pragma clang loop unroll(full)
        for (uint part = 0; part < (MINS ? 2 : 1); part++) {
          // All quads share a scale, or, with minima, the two of a word have one each.
          constexpr uint WIDTH = MINS ? 4 : 4 * QUADS;
          float dot = 0, sum = 0;
          #pragma clang loop unroll(full)
          for (uint i = part * WIDTH; i < (part + 1) * WIDTH; i++) {
            dot += level[r][i] * values[i];
            if (MINS) sum += values[i];
          }
          sums[r][n] += scale[r][part] * unit * dot + minimum[r][part] * sum;
        }
      }
    }
  }
  for (uint r = 0; r < UNIT_ROWS; r++) {
    for (uint n = 0; n < N; n++) {
      const float sum = simd_sum(sums[r][n]);
      const uint row = tile * UNIT_ROWS + r;
      if (lane == 0 && row < p.rows && n < p.batch) y[n * p.rows + row] = sum;
    }
  }
}

// Levels of a table: weight = scale * table[code] / 64.
template <uint BITS, uint N>
kernel void gemv_gaussian(
    device const uint* codes [[buffer(0)]],
    device const half* scales [[buffer(1)]],
    constant char* table [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant Product& p [[buffer(5)]],
    threadgroup float* levels [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  if (thread_index < 1u << BITS) levels[thread_index] = float(table[thread_index]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const Product q = {p.rows, p.cols, p.batch, p.group};
  gemv_units_rows<BITS, true, false, N>(codes, scales, scales, levels, 1.0f / 64, x, y, q, 2 * group + simdgroup, lane);
}

// weight = minimum + scale * code / 16, in groups of 32.
template <uint N>
kernel void gemv_int4(
    device const uint* codes [[buffer(0)]],
    device const half* scales [[buffer(1)]],
    device const half* mins [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant Product& p [[buffer(5)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Product q = {p.rows, p.cols, p.batch, p.group};
  gemv_units_rows<4, false, true, N>(codes, scales, mins, nullptr, 1.0f / 16, x, y, q, 2 * group + simdgroup, lane);
}

// weight = scale * code / 128.
template <uint N>
kernel void gemv_int8(
    device const uint* codes [[buffer(0)]],
    device const half* scales [[buffer(1)]],
    device const float* x [[buffer(2)]],
    device float* y [[buffer(3)]],
    constant Product& p [[buffer(4)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const Product q = {p.rows, p.cols, p.batch, p.group};
  gemv_units_rows<8, false, false, N>(codes, scales, scales, nullptr, 1.0f / 128, x, y, q, 2 * group + simdgroup, lane);
}

// Up to three matrices of one input.
template <uint BITS>
kernel void gemv_gaussian_together(
    device const uint* codes_a [[buffer(0)]],
    device const uint* codes_b [[buffer(1)]],
    device const uint* codes_c [[buffer(2)]],
    device const half* scales_a [[buffer(3)]],
    device const half* scales_b [[buffer(4)]],
    device const half* scales_c [[buffer(5)]],
    constant char* table [[buffer(6)]],
    device const float* x [[buffer(7)]],
    device float* y [[buffer(8)]],
    constant Together& p [[buffer(9)]],
    threadgroup float* levels [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  if (thread_index < 1u << BITS) levels[thread_index] = float(table[thread_index]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  Strip strip = {0, group, 0};
  find_strip(p, group, 2 * UNIT_ROWS, strip);
  device const half* scales = chosen(strip.matrix, scales_a, scales_b, scales_c);
  const Product q = {p.rows[strip.matrix], p.cols, 1, p.group};
  gemv_units_rows<BITS, true, false, 1>(
      chosen(strip.matrix, codes_a, codes_b, codes_c), scales, scales, levels, 1.0f / 64, x, y + strip.before, q,
      2 * strip.index + simdgroup, lane);
}

kernel void gemv_int4_together(
    device const uint* codes_a [[buffer(0)]],
    device const uint* codes_b [[buffer(1)]],
    device const uint* codes_c [[buffer(2)]],
    device const half* scales_a [[buffer(3)]],
    device const half* scales_b [[buffer(4)]],
    device const half* scales_c [[buffer(5)]],
    device const half* mins_a [[buffer(6)]],
    device const half* mins_b [[buffer(7)]],
    device const half* mins_c [[buffer(8)]],
    device const float* x [[buffer(9)]],
    device float* y [[buffer(10)]],
    constant Together& p [[buffer(11)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Strip strip = {0, group, 0};
  find_strip(p, group, 2 * UNIT_ROWS, strip);
  const Product q = {p.rows[strip.matrix], p.cols, 1, p.group};
  gemv_units_rows<4, false, true, 1>(
      chosen(strip.matrix, codes_a, codes_b, codes_c), chosen(strip.matrix, scales_a, scales_b, scales_c),
      chosen(strip.matrix, mins_a, mins_b, mins_c), nullptr, 1.0f / 16, x, y + strip.before, q,
      2 * strip.index + simdgroup, lane);
}

kernel void gemv_int8_together(
    device const uint* codes_a [[buffer(0)]],
    device const uint* codes_b [[buffer(1)]],
    device const uint* codes_c [[buffer(2)]],
    device const half* scales_a [[buffer(3)]],
    device const half* scales_b [[buffer(4)]],
    device const half* scales_c [[buffer(5)]],
    device const float* x [[buffer(6)]],
    device float* y [[buffer(7)]],
    constant Together& p [[buffer(8)]],
    uint group [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Strip strip = {0, group, 0};
  find_strip(p, group, 2 * UNIT_ROWS, strip);
  device const half* scales = chosen(strip.matrix, scales_a, scales_b, scales_c);
  const Product q = {p.rows[strip.matrix], p.cols, 1, p.group};
  gemv_units_rows<8, false, false, 1>(
      chosen(strip.matrix, codes_a, codes_b, codes_c), scales, scales, nullptr, 1.0f / 128, x, y + strip.before, q,
      2 * strip.index + simdgroup, lane);
}

#define GAUSSIAN_TOGETHER(NAME, BITS) \
  template [[host_name("gemv_" #NAME "_together")]] kernel decltype(gemv_gaussian_together<BITS>) gemv_gaussian_together<BITS>;
GAUSSIAN_TOGETHER(nf2, 2)
GAUSSIAN_TOGETHER(int3, 3)
GAUSSIAN_TOGETHER(int4r, 4)

#define GAUSSIAN(NAME, BITS, N) \
  template [[host_name("gemv_" #NAME "_" #N)]] kernel decltype(gemv_gaussian<BITS, N>) gemv_gaussian<BITS, N>;
#define UNITS(N) \
  GAUSSIAN(nf2, 2, N) \
  GAUSSIAN(int3, 3, N) \
  GAUSSIAN(int4r, 4, N) \
  template [[host_name("gemv_int4_" #N)]] kernel decltype(gemv_int4<N>) gemv_int4<N>; \
  template [[host_name("gemv_int8_" #N)]] kernel decltype(gemv_int8<N>) gemv_int8<N>;
UNITS(1)
UNITS(2)
UNITS(4)
UNITS(8)

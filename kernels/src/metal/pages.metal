// Pages of keys and values (docs/format.md, section 9), as the kernels that write and read them have them in common.
//
// Layout    a page is 64 positions of one layer, a unit 64 numbers side by side: of keys one channel of the positions, of
//           values 64 channels of a position. Of each side there are head_dim units a head: packed, with a scale a position,
//           u8 [pages, kv_heads, head_dim, unit] and f16 [pages, kv_heads, 64]; and as they came, f16 [ring, kv_heads, head_dim,
//           64], where page i lies at i % ring.
// Widths    head_dim is a multiple of 64, and 256 at most.
// Moves     nothing by itself: a quarter of a unit is one load of 16, 8 or 4 bytes; packed, a number of a vector of 128 costs
//           8.125, 4.125 or 2.125 bits.
//
// Four lanes share a unit, eight units are read at a time. With b bits a code, a byte holds numbers 8 b apart; lane h of the
// four has bytes 2 b h and following, so that its i-th number is 2 b h + i % 2b + 8 b (i / 2b), for i below 16.

struct Pages {
  uint kv_heads;
  uint head_dim;
  uint recent;    // pages before a query's own that it sees as they came
  uint block;     // of the rotation that packed sides have passed through
  uint rings[2];  // pages of keys, and of values, that are held as they came
  uint bits[2];   // of a code of keys, and of values; 16 for a side that is not packed
};

constant constexpr uint KEYS = 0;
constant constexpr uint VALUES = 1;

// A side of one head of a page.
struct Units {
  device const uchar* first;
  device const half* scales;  // of the 64 positions, where it is packed
  uint bits;
};

// A side of a page as queries of another page see it.
METAL_FUNC Units seen_units(
    constant Pages& p, uint side, device const half* recent, device const uchar* packed, device const half* scales,
    uint query_page, uint page, uint kv_head) {
  const uint bits = query_page <= page + p.recent ? 16 : p.bits[side];
  const uint at = (bits == 16 ? page % p.rings[side] : page) * p.kv_heads + kv_head;
  device const uchar* all = bits == 16 ? (device const uchar*)recent : packed;
  return {all + at * p.head_dim * 8 * bits, scales + at * 64 * (bits < 16), bits};
}

// Numbers of a run of one lane of the four, where codes have so many bits. What is not packed is read as the packed would be.
METAL_FUNC uint run_of(uint bits) { return bits < 16 ? 2 * bits : 16; }

// The place in its unit of a lane's i-th number.
METAL_FUNC uint place_of(uint run, uint quarter, uint i) { return run * quarter + i % run + 4 * run * (i / run); }

// sum[i] += weight * number, for the 16 numbers of a quarter of a unit.
METAL_FUNC void add_quarter(
    device const uchar* unit, uint bits, uint run, uint quarter, threadgroup const float* levels, float weight,
    thread float* sum) {
  if (bits == 16) {
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 16; i += 4) {
      const half4 v = *(device const half4*)(unit + 2 * place_of(run, quarter, i));
      for (uint c = 0; c < 4; c++) sum[i + c] += weight * float(v[c]);
    }
  } else if (bits == 8) {
    const uint4 words = *(device const uint4*)(unit + 16 * quarter);
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 16; i++) sum[i] += weight * float(int(words[i / 4] << (24 - 8 * (i % 4))) >> 24);
  } else if (bits == 4) {
    const uint2 words = *(device const uint2*)(unit + 8 * quarter);
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 16; i++) sum[i] += weight * levels[words[i % 8 / 4] >> (8 * (i % 4) + 4 * (i / 8)) & 15];
  } else {
    const uint word = *(device const uint*)(unit + 4 * quarter);
    #pragma clang loop unroll(full)
    for (uint i = 0; i < 16; i++) sum[i] += weight * levels[word >> (8 * (i % 4) + 2 * (i / 4)) & 3];
  }
}

// Adds up the 16 sums of the eight lanes that have the same quarter: lane 4 g + h then has numbers 2 g and 2 g + 1 of them in
// sum[0] and sum[1].
METAL_FUNC void scatter_sums(thread float* sum, uint lane) {
  #pragma clang loop unroll(full)
  for (uint half_of = 8, mask = 16; half_of >= 2; half_of /= 2, mask /= 2) {
    const bool upper = lane & mask;
    #pragma clang loop unroll(full)
    for (uint i = 0; i < half_of; i++) {
      const float given = upper ? sum[i] : sum[i + half_of];
      sum[i] = (upper ? sum[i + half_of] : sum[i]) + simd_shuffle_xor(given, ushort(mask));
    }
  }
}

// v <- H D v, or its inverse D H v, for one head's vector, of which v[e] is channel lane + 32 e, in blocks of 64 to 256.
// `signs` has 256 of them; beyond head_dim there are zeros.
METAL_FUNC void rotate_head(thread float* v, uint block, constant uint* signs, bool inverse, uint lane) {
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 8; e++) {
    if (!inverse) v[e] = signed_by(signs, lane + 32 * e, v[e]);
    #pragma clang loop unroll(full)
    for (uint distance = 1; distance < 32; distance *= 2) {
      const float other = simd_shuffle_xor(v[e], ushort(distance));
      v[e] = lane & distance ? other - v[e] : v[e] + other;
    }
  }
  #pragma clang loop unroll(full)
  for (uint distance = 1; distance < 8; distance *= 2) {
    if (32 * distance >= block) continue;
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) {
      if (e & distance) continue;
      const float low = v[e], high = v[e + distance];
      v[e] = low + high;
      v[e + distance] = low - high;
    }
  }
  const float norm = rsqrt(float(block));
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 8; e++) v[e] = (inverse ? signed_by(signs, lane + 32 * e, v[e]) : v[e]) * norm;
}

// Heads as attention wants them (heads.metal), with keys and values put into pages, and pages that are no longer recent
// packed: H D of queries, keys and values whose side is packed, a code a number, a scale a vector.
//
// Reads     q f32 [n, heads, head_dim], k and v f32 [n, kv_heads, head_dim]; of pages that are packed, f16.
// Grid      (heads + 2 kv_heads, n) threadgroups of a simdgroup: one head of one position each, a lane holding every 32nd
//           channel; and 8 b packers a page, head and side of b bits, each with the 8 / b positions that share bytes: of one
//           position in the same launch, behind its heads, of more in one of their own.
// Moves     6 bytes a number kept, 8 a number of a query (with norms 4 more, from the cache); to pack, 2 + b / 8 bytes a number.
// Aims at   the time of a dispatch. A page is packed once in 64 tokens.
//
// Codes: int8 by the largest magnitude; of the Gaussian levels the nearest, for the scale that is best for them, which is found by
// turns, x . l / l . l for levels l.

struct Packing {
  uint first_group;       // of packers: before it are heads
  uint first_page;
  uint rounds;
  float unit_scales[2];   // of the Gaussian levels of keys and values, for values of variance 1
};

// A code for each of a lane's numbers, and the bits of their f16 scale: arithmetic that knows no infinities need not keep
// a half that is none.
struct Codes {
  uint of[8];
  ushort scale;
};

METAL_FUNC void nearest_codes(
    thread const float* x, uint count, constant float* levels, uint bits, float inverse, thread uint* codes) {
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 8; e++) codes[e] = 0;
  for (uint i = 0; i + 1 < 1u << bits; i++) {
    const float middle = 0.5f * (levels[i] + levels[i + 1]);
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) codes[e] += e < count && x[e] * inverse > middle ? 1 : 0;
  }
}

METAL_FUNC float inverse_of(ushort bits) {
  const float scale = float(as_type<half>(bits));
  return scale > 0 ? 1 / scale : 0.0f;
}

// The codes of a vector, of which x[e] is channel lane + 32 e, for e below count. One that is not finite has a scale that is
// none.
METAL_FUNC void encode(
    thread const float* x, uint count, bool finite, uint bits, constant float* levels, float unit_scale, uint rounds,
    thread Codes& codes) {
  if (bits == 8) {
    float most = 0;
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) most = max(most, e < count ? abs(x[e]) : 0.0f);
    codes.scale = as_type<ushort>(half(simd_max(most) / 127));
    const float inverse = inverse_of(codes.scale);
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) codes.of[e] = uint(int(clamp(round(x[e] * inverse), -127.0f, 127.0f))) & 255;
  } else {
    float energy = 0;
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) energy += e < count ? x[e] * x[e] : 0.0f;
    float scale = unit_scale * sqrt(simd_sum(energy) / (32 * count));
    for (uint turn = 0; turn < rounds && scale > 0; turn++) {
      nearest_codes(x, count, levels, bits, 1 / scale, codes.of);
      float product = 0, square = 0;
      #pragma clang loop unroll(full)
      for (uint e = 0; e < 8; e++) {
        const float level = e < count ? levels[codes.of[e]] : 0.0f;
        product += x[e] * level;
        square += level * level;
      }
      scale = simd_sum(product) / simd_sum(square);
    }
    codes.scale = as_type<ushort>(half(scale));
    nearest_codes(x, count, levels, bits, inverse_of(codes.scale), codes.of);
  }
  if (!finite) {
    codes.scale = 0x7e00;
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) codes.of[e] = 0;
  }
}

// Packs the positions of one head's side of a page that share byte `group` of a unit of keys, or as many of values.
METAL_FUNC void pack_positions(
    constant Pages& p, constant Packing& packing, uint side, uint page, uint kv_head, uint group,
    device const half* recent, device uchar* packed, device ushort* scales, constant float* levels, uint lane) {
  const uint bits = p.bits[side], unit = 8 * bits, count = p.head_dim / 32;
  device const half* from = recent + (page % p.rings[side] * p.kv_heads + kv_head) * p.head_dim * 64;
  device uchar* to = packed + (page * p.kv_heads + kv_head) * p.head_dim * unit;
  uint bytes[8] = {};
  for (uint position = group, shift = 0; position < 64; position += unit, shift += bits) {
    float x[8] = {};
    uint bad = 0;
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) {
      if (e >= count) continue;
      const uint channel = lane + 32 * e;
      const half v = side == KEYS ? from[channel * 64 + position] : from[(channel / 64 * 64 + position) * 64 + channel % 64];
      x[e] = float(v);
      bad |= (as_type<ushort>(v) & 0x7c00) == 0x7c00;
    }
    const bool finite = simd_max(bad) == 0;
    Codes codes;
    encode(x, count, finite, bits, levels, packing.unit_scales[side], packing.rounds, codes);
    if (lane == 0) scales[(page * p.kv_heads + kv_head) * 64 + position] = codes.scale;
    if (side == KEYS) {
      #pragma clang loop unroll(full)
      for (uint e = 0; e < 8; e++) bytes[e] |= codes.of[e] << shift;
      continue;
    }
    // Channels 32 e and 32 (e + 1) on are two halves of a unit.
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e += 2) {
      if (e >= count) continue;
      device uchar* own = to + (e / 2 * 64 + position) * unit;
      if (bits == 8) {
        own[lane] = uchar(codes.of[e]);
        own[lane + 32] = uchar(codes.of[e + 1]);
      } else if (bits == 4) {
        own[lane] = uchar(codes.of[e] | codes.of[e + 1] << 4);
      } else {
        const uint two = codes.of[e] << (lane / 16 * 2) | codes.of[e + 1] << (4 + lane / 16 * 2);
        const uint four = two | simd_shuffle_xor(two, ushort(16));
        if (lane < 16) own[lane] = uchar(four);
      }
    }
  }
  if (side == KEYS) {
    #pragma clang loop unroll(full)
    for (uint e = 0; e < 8; e++) {
      if (e < count) to[(lane + 32 * e) * unit + group] = uchar(bytes[e]);
    }
  }
}

kernel void append_pages(
    device const float* q [[buffer(0)]],
    device const float* k [[buffer(1)]],
    device const float* v [[buffer(2)]],
    device const float* q_bias [[buffer(3)]],        // [heads, head_dim]
    device const float* k_bias [[buffer(4)]],
    device const float* v_bias [[buffer(5)]],
    device const float* q_factor [[buffer(6)]],      // [head_dim]
    device const float* k_factor [[buffer(7)]],
    device const float* cosines [[buffer(8)]],       // [n, head_dim / 2]
    device const float* sines [[buffer(9)]],
    device float* y [[buffer(10)]],                  // queries [heads, n, head_dim]
    device half* recent_keys [[buffer(11)]],
    device half* recent_values [[buffer(12)]],
    device uchar* packed_keys [[buffer(13)]],
    device uchar* packed_values [[buffer(14)]],
    device ushort* key_scales [[buffer(15)]],        // f16
    device ushort* value_scales [[buffer(16)]],
    constant uint* signs [[buffer(17)]],             // of 256 channels
    constant float* levels [[buffer(18)]],           // [2, 16], of keys and of values
    constant SplitHeads& p [[buffer(19)]],
    constant Pages& pages [[buffer(20)]],
    constant Packing& packing [[buffer(21)]],
    uint2 at [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]]) {
  if (at.x >= packing.first_group) {
    const uint of_keys = pages.bits[KEYS] < 16 ? 8 * pages.bits[KEYS] : 0;
    const uint of_values = pages.bits[VALUES] < 16 ? 8 * pages.bits[VALUES] : 0;
    const uint packer = at.x - packing.first_group, a_head = of_keys + of_values;
    const uint group = packer % a_head, kv_head = packer / a_head % pages.kv_heads;
    const uint page = packing.first_page + packer / a_head / pages.kv_heads;
    if (group < of_keys) {
      pack_positions(pages, packing, KEYS, page, kv_head, group, recent_keys, packed_keys, key_scales, levels, lane);
    } else {
      pack_positions(
          pages, packing, VALUES, page, kv_head, group - of_keys, recent_values, packed_values, value_scales, levels + 16, lane);
    }
    return;
  }
  Head head;
  find_head(p, at.x, head);
  find_operands(
      p, at.y, chosen(head.kind, q, k, v), chosen(head.kind, q_bias, k_bias, v_bias),
      head.kind == 0 ? q_factor : k_factor, cosines, sines, lane, head);
  const uint halves = p.head_dim / 64;
  float x[8] = {};
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 4; e++) {
    if (e >= halves) continue;
    float low, high;
    ready_pair(p, head, lane + 32 * e, low, high);
    x[e] = low;
    // A constant index: values that are in registers have no other.
    #pragma clang loop unroll(full)
    for (uint other = 1; other < 8; other++) {
      if (other == e + halves) x[other] = high;
    }
  }
  // Queries are rotated as keys are.
  const uint side = head.kind == 2 ? VALUES : KEYS;
  if (pages.bits[side] < 16) rotate_head(x, pages.block, signs, false, lane);
  const uint position = p.start + at.y, page = position / 64;
  device half* to = (side == KEYS ? recent_keys : recent_values) +
      (page % pages.rings[side] * p.kv_heads + head.index) * p.head_dim * 64;
  #pragma clang loop unroll(full)
  for (uint e = 0; e < 8; e++) {
    const uint channel = lane + 32 * e;
    if (channel >= p.head_dim) continue;
    if (head.kind == 0) {
      y[(head.index * p.positions + at.y) * p.head_dim + channel] = x[e];
    } else if (head.kind == 1) {
      to[channel * 64 + position % 64] = half(x[e]);
    } else {
      to[(channel / 64 * 64 + position % 64) * 64 + channel % 64] = half(x[e]);
    }
  }
}

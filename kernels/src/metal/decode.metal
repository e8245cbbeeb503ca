// Single weights, as the scalar references of kernels/src/scheme read them, and what is built of them: the embedding
// look-up and the left factor of a low-rank correction. Here also the sparse correction.
//
// Reads     any stored matrix, ids u32 [n]; z f32 [batch, rows] of few rows; sparse entries u16 and f16, x f32.
// Grid      gather, transposed: a thread an output. sparse: a thread a row.
// Moves     gather: bits / 8 + 4 bytes an output. transposed: rows bits / 8 + 4, z from the cache. sparse: 4 bytes an entry,
//           and a value of x from the cache.
// Aims at   the time of a dispatch: a row or a few.

// A stored matrix. Schemes without minima or a table have any other buffer there.
struct Stored {
  device const uchar* codes;
  device const half* scales;
  device const half* mins;
  constant char* table;
  uint cols;
  uint group;
};

template <uint K>
struct Trellis {
  static METAL_FUNC float weight(thread const Stored& w, uint row, uint col) {
    device const uchar* tile = w.codes + (row / 16 * (w.cols / 16) + col / 16) * 32 * K;
    const uint bit = K * (row % 16 * 16 + col % 16), byte = bit / 8;
    // Three bytes hold the window; after the tile's last byte comes its first.
    uint bits = 0;
    for (uint b = 0; b < 3; b++) bits |= uint(tile[(byte + b) % (32 * K)]) << (8 * b);
    return float(w.scales[row]) * (float(w.table[pair_of(bits >> (bit % 8))]) / 32);
  }
};

template <uint BITS>
struct Gaussian {
  static METAL_FUNC float weight(thread const Stored& w, uint row, uint col) {
    device const uchar* unit = w.codes + (row * (w.cols / 64) + col / 64) * 8 * BITS;
    const uint i = col % 64;
    uint code = BITS == 4 ? unit[i % 32] >> (4 * (i / 32)) & 15 : unit[i % 16] >> (2 * (i / 16)) & 3;
    if (BITS == 3) code |= (unit[16 + i / 8] >> (i % 8) & 1) << 2;
    return float(w.scales[row * (w.cols / w.group) + col / w.group]) * (float(w.table[code]) / 64);
  }
};

struct Int4 {
  static METAL_FUNC float weight(thread const Stored& w, uint row, uint col) {
    const uint i = col % 64, g = row * (w.cols / 32) + col / 32;
    const uint code = w.codes[(row * (w.cols / 64) + col / 64) * 32 + i % 32] >> (4 * (i / 32)) & 15;
    return float(w.mins[g]) + float(w.scales[g]) * (float(code) / 16);
  }
};

struct Int8 {
  static METAL_FUNC float weight(thread const Stored& w, uint row, uint col) {
    const float code = float(((device const char*)w.codes)[row * w.cols + col]);
    return float(w.scales[row * (w.cols / w.group) + col / w.group]) * (code / 128);
  }
};

template <typename E>
struct Unquantised {
  static METAL_FUNC float weight(thread const Stored& w, uint row, uint col) {
    return E::value(((device const typename E::One*)w.codes)[row * w.cols + col]);
  }
};

// y [batch, cols]: rows `ids` of the matrix. No number where an id is not below p.rows.
template <typename S>
kernel void gather(
    device const uint* ids [[buffer(0)]],
    device const uchar* codes [[buffer(1)]],
    device const half* scales [[buffer(2)]],
    device const half* mins [[buffer(3)]],
    constant char* table [[buffer(4)]],
    device float* y [[buffer(5)]],
    constant Product& p [[buffer(6)]],
    uint2 at [[thread_position_in_grid]]) {
  if (at.x >= p.cols || at.y >= p.batch) return;
  const Stored w = {codes, scales, mins, table, p.cols, p.group};
  const uint row = ids[at.y];
  y[at.y * p.cols + at.x] = row < p.rows ? S::weight(w, row, at.x) : as_type<float>(0x7fc00000u);
}

// y [batch, cols] = z [batch, rows] L, for few rows.
template <typename S>
kernel void transposed(
    device const uchar* codes [[buffer(0)]],
    device const half* scales [[buffer(1)]],
    device const half* mins [[buffer(2)]],
    constant char* table [[buffer(3)]],
    device const float* z [[buffer(4)]],
    device float* y [[buffer(5)]],
    constant Product& p [[buffer(6)]],
    uint2 at [[thread_position_in_grid]]) {
  if (at.x >= p.cols || at.y >= p.batch) return;
  const Stored w = {codes, scales, mins, table, p.cols, p.group};
  float sum = 0;
  for (uint r = 0; r < p.rows; r++) sum += z[at.y * p.rows + r] * S::weight(w, r, at.x);
  y[at.y * p.cols + at.x] = sum;
}

// y [batch, rows] = x [batch, cols] S^T: rows offsets[r] .. offsets[r + 1] of the entries are those of row r.
kernel void sparse(
    device const uint* offsets [[buffer(0)]],
    device const ushort* columns [[buffer(1)]],
    device const half* values [[buffer(2)]],
    device const float* x [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant Product& p [[buffer(5)]],
    uint2 at [[thread_position_in_grid]]) {
  if (at.x >= p.rows || at.y >= p.batch) return;
  float sum = 0;
  for (uint i = offsets[at.x]; i < offsets[at.x + 1]; i++) sum += float(values[i]) * x[at.y * p.cols + columns[i]];
  y[at.y * p.rows + at.x] = sum;
}

#define DECODE(NAME, ...) \
  template [[host_name("gather_" #NAME)]] kernel decltype(gather<__VA_ARGS__>) gather<__VA_ARGS__>; \
  template [[host_name("transposed_" #NAME)]] kernel decltype(transposed<__VA_ARGS__>) transposed<__VA_ARGS__>;
DECODE(tcq2, Trellis<2>)
DECODE(tcq3, Trellis<3>)
DECODE(tcq4, Trellis<4>)
DECODE(tcq5, Trellis<5>)
DECODE(nf2, Gaussian<2>)
DECODE(int3, Gaussian<3>)
DECODE(int4r, Gaussian<4>)
DECODE(int4, Int4)
DECODE(int8, Int8)
DECODE(bf16, Unquantised<Bf16>)
DECODE(f16, Unquantised<F16>)
DECODE(f32, Unquantised<F32>)

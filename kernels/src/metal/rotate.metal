// The randomised Hadamard rotation y = H D x of rows of `cols` values, alone or of what a step before it makes:
// a root-mean-square norm of the residual stream, with what a layer adds to it, or the gated product of an MLP. So the
// value that is rotated is never stored.
//
// Reads     x f32 [batch, cols] (and further operands), signs 1 bit a column (lowest first, a set bit is a minus).
// Grid      (cols / span, batch) threadgroups of S simdgroups; a threadgroup transforms `span` = 32 S E columns, for
//           E values a thread: one block of 64 to 4096, or as many smaller blocks as fit in 32 columns.
// Moves     8 bytes an output; gated 12; with a norm of a sum 16, the row once more for its mean square, from the cache.
// Aims at   the time of a dispatch: rows are short.
//
// Passes of distance 1 to 16 shuffle between lanes, those within a thread's values need nothing, and those between
// simdgroups trade places with the latter once, through threadgroup memory.

struct Rotation {
  uint cols;
  uint block;       // of the transform here: at most 4096
  float norm;       // 1 / sqrt(block), of the whole block
  uint signs_first;
  uint signs_last;
};

// What is rotated.
enum Source { PLAIN, SILU, GELU };

// What is normalised.
struct Norm {
  uint cols;
  uint batch;
  uint adds;        // what is added to x before: 0 nothing, 1 `added`, 2 `added` normalised
  float eps;
  float after_eps;  // of the norm of `added`
};

// A row of the residual stream: x, x + added, or x + added scale after.
struct Stream {
  device const float* x;
  device const float* added;
  device const float* after;
  uint adds;
  float scale;
};

// A set bit is a minus: the sign bit of an f32 is its highest.
METAL_FUNC float signed_by(constant uint* signs, uint col, float v) {
  return as_type<float>(as_type<uint>(v) ^ ((signs[col / 32] >> (col % 32)) << 31));
}

// x / (1 + e^-x), without overflow.
METAL_FUNC float silu(float x) {
  const float e = exp(-abs(x));
  return x * (x >= 0 ? 1.0f : e) / (1 + e);
}

// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))). The fast tanh is no number for large arguments.
METAL_FUNC float gelu(float x) {
  return 0.5f * x * (1 + precise::tanh(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

METAL_FUNC float stream_at(thread const Stream& s, uint i) {
  if (s.adds == 0) return s.x[i];
  return s.x[i] + (s.adds == 1 ? s.added[i] : s.added[i] * s.scale * s.after[i]);
}

// 1 / sqrt(mean(s^2) + eps) of a row, in every thread of a threadgroup. `partial` holds 32 values.
METAL_FUNC float norm_factor(
    thread const Stream& s, uint cols, float eps, threadgroup float* partial,
    uint thread_index, uint threads, uint simdgroup, uint lane) {
  float sum = 0;
  for (uint i = thread_index; i < cols; i += threads) {
    const float v = stream_at(s, i);
    sum += v * v;
  }
  sum = simd_sum(sum);
  if (lane == 0) partial[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sum = simd_sum(lane < threads / 32 ? partial[lane] : 0.0f);
  return rsqrt(sum / cols + eps);
}

// Makes s, a row of x and of what is added, the stream. `partial` holds 32 values that nothing else uses.
METAL_FUNC void add_up(
    thread Stream& s, constant Norm& n,
    threadgroup float* partial, uint thread_index, uint threads, uint simdgroup, uint lane) {
  if (n.adds == 2) {
    const Stream alone = {s.added, s.added, s.after, 0, 1.0f};
    s.scale = norm_factor(alone, n.cols, n.after_eps, partial, thread_index, threads, simdgroup, lane);
  }
  s.adds = n.adds;
}

// Transforms a threadgroup's columns from `first` on, of which v[e] is column lane + 32 (simdgroup + simdgroups e), into `to`.
// `exchange` holds them all.
template <uint E>
METAL_FUNC void transform(
    thread float* v, device float* to, constant uint* signs, constant Rotation& p, threadgroup float* exchange,
    uint first, uint simdgroups, uint simdgroup, uint lane) {
  #pragma clang loop unroll(full)
  for (uint e = 0; e < E; e++) {
    const uint col = first + lane + 32 * (simdgroup + simdgroups * e);
    if (p.signs_first && col < p.cols) v[e] = signed_by(signs, col, v[e]);
    for (uint distance = 1; distance < min(p.block, 32u); distance *= 2) {
      const float there = simd_shuffle_xor(v[e], ushort(distance));
      v[e] = lane & distance ? there - v[e] : v[e] + there;
    }
  }
  #pragma clang loop unroll(full)
  for (uint distance = 1; distance < E; distance *= 2) {
    #pragma clang loop unroll(full)
    for (uint e = 0; e < E; e++) {
      if (e & distance) continue;
      const float low = v[e], high = v[e + distance];
      v[e] = low + high;
      v[e + distance] = low - high;
    }
  }
  // Afterwards value e is that of simdgroup e % S, value simdgroup E / S + e / S before.
  const uint own = E / simdgroups;
  if (simdgroups > 1) {
    #pragma clang loop unroll(full)
    for (uint e = 0; e < E; e++) exchange[lane + 32 * (simdgroup + simdgroups * e)] = v[e];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    #pragma clang loop unroll(full)
    for (uint e = 0; e < E; e++) {
      v[e] = exchange[lane + 32 * (e % simdgroups + simdgroups * (simdgroup * own + e / simdgroups))];
    }
    #pragma clang loop unroll(full)
    for (uint distance = 1; distance < E; distance *= 2) {
      if (distance < simdgroups) {
        #pragma clang loop unroll(full)
        for (uint e = 0; e < E; e++) {
          if (e & distance) continue;
          const float low = v[e], high = v[e + distance];
          v[e] = low + high;
          v[e + distance] = low - high;
        }
      }
    }
  }
  #pragma clang loop unroll(full)
  for (uint e = 0; e < E; e++) {
    const uint col = first + lane + 32 * (e % simdgroups + simdgroups * (simdgroup * own + e / simdgroups));
    if (col < p.cols) {
      const float value = v[e] * p.norm;
      to[col] = p.signs_last ? signed_by(signs, col, value) : value;
    }
  }
}

template <uint E, Source SOURCE>
kernel void rotate_rows(
    device const float* x [[buffer(0)]],
    device const float* other [[buffer(1)]],  // up [batch, cols]
    constant uint* signs [[buffer(2)]],
    device float* y [[buffer(3)]],
    constant Rotation& p [[buffer(4)]],
    threadgroup float* exchange [[threadgroup(0)]],  // span
    uint2 group [[threadgroup_position_in_grid]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  device const float* row = x + group.y * p.cols;
  const uint first = group.x * 32 * simdgroups * E;
  float v[E];
  #pragma clang loop unroll(full)
  for (uint e = 0; e < E; e++) {
    const uint col = first + lane + 32 * (simdgroup + simdgroups * e);
    v[e] = 0;
    if (col < p.cols) {
      v[e] = row[col];
      if (SOURCE == SILU) v[e] = silu(v[e]) * other[group.y * p.cols + col];
      if (SOURCE == GELU) v[e] = gelu(v[e]) * other[group.y * p.cols + col];
    }
  }
  transform<E>(v, y + group.y * p.cols, signs, p, exchange, first, simdgroups, simdgroup, lane);
}

// y [batch, cols]: the norm of the stream, rotated; behind it, where something is added, the stream itself.
template <uint E>
kernel void rotate_norm(
    device const float* x [[buffer(0)]],
    device const float* added [[buffer(1)]],
    device const float* after [[buffer(2)]],
    device const float* factor [[buffer(3)]],
    constant uint* signs [[buffer(4)]],
    device float* y [[buffer(5)]],
    constant Rotation& p [[buffer(6)]],
    constant Norm& norm [[buffer(7)]],
    threadgroup float* exchange [[threadgroup(0)]],  // span
    threadgroup float* partial [[threadgroup(1)]],   // 2 x 32
    uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const uint threads = 32 * simdgroups, first = group.x * threads * E;
  Stream s = {x + group.y * p.cols, added + group.y * p.cols, after, 0, 1.0f};
  add_up(s, norm, partial + 32, thread_index, threads, simdgroup, lane);
  const float scale = norm_factor(s, p.cols, norm.eps, partial, thread_index, threads, simdgroup, lane);
  float v[E];
  #pragma clang loop unroll(full)
  for (uint e = 0; e < E; e++) {
    const uint col = first + lane + 32 * (simdgroup + simdgroups * e);
    v[e] = 0;
    if (col < p.cols) {
      const float value = stream_at(s, col);
      if (norm.adds > 0) y[(norm.batch + group.y) * p.cols + col] = value;
      v[e] = value * scale * factor[col];
    }
  }
  transform<E>(v, y + group.y * p.cols, signs, p, exchange, first, simdgroups, simdgroup, lane);
}

// One pass of distance `block` over rows of y, in place: what blocks above 4096 need besides.
kernel void hadamard_pass(
    constant uint* signs [[buffer(0)]],
    device float* y [[buffer(1)]],
    constant Rotation& p [[buffer(2)]],
    uint2 at [[thread_position_in_grid]]) {
  if (at.x >= p.cols / 2) return;
  const uint col = at.x / p.block * 2 * p.block + at.x % p.block;
  device float* row = y + at.y * p.cols;
  float low = row[col] + row[col + p.block], high = row[col] - row[col + p.block];
  if (p.signs_last) {
    low = signed_by(signs, col, low);
    high = signed_by(signs, col + p.block, high);
  }
  row[col] = low;
  row[col + p.block] = high;
}

#define ROTATE(E) \
  template [[host_name("rotate_" #E)]] kernel decltype(rotate_rows<E, PLAIN>) rotate_rows<E, PLAIN>; \
  template [[host_name("rotate_norm_" #E)]] kernel decltype(rotate_norm<E>) rotate_norm<E>; \
  template [[host_name("rotate_silu_" #E)]] kernel decltype(rotate_rows<E, SILU>) rotate_rows<E, SILU>; \
  template [[host_name("rotate_gelu_" #E)]] kernel decltype(rotate_rows<E, GELU>) rotate_rows<E, GELU>;
ROTATE(1)
ROTATE(2)
ROTATE(4)
ROTATE(8)
ROTATE(16)

// The norm and the gated products without a rotation behind, for matrices that want none.
//
// Reads     f32 all of them: x, added [batch, cols], after, factor [cols]; gate, up [count].
// Grid      rms_norm: a threadgroup of 256 threads a row. gated: a thread a value.
// Moves     rms_norm: 8 bytes an output, with what is added 16 (the row twice, the second time from the cache). gated: 12.
// Aims at   the time of a dispatch.

// y [batch, cols]: s / sqrt(mean(s^2) + eps) * factor, for rows s of the stream; behind it, where something is added, the stream.
kernel void rms_norm(
    device const float* x [[buffer(0)]],
    device const float* added [[buffer(1)]],
    device const float* after [[buffer(2)]],
    device const float* factor [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant Norm& p [[buffer(5)]],
    threadgroup float* partial [[threadgroup(0)]],  // 2 x 32
    uint row [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  Stream s = {x + row * p.cols, added + row * p.cols, after, 0, 1.0f};
  add_up(s, p, partial + 32, thread_index, 256, simdgroup, lane);
  const float scale = norm_factor(s, p.cols, p.eps, partial, thread_index, 256, simdgroup, lane);
  for (uint i = thread_index; i < p.cols; i += 256) {
    const float value = stream_at(s, i);
    if (p.adds > 0) y[(p.batch + row) * p.cols + i] = value;
    y[row * p.cols + i] = value * scale * factor[i];
  }
}

// y = activation(gate) * up.
template <Source SOURCE>
kernel void gated(
    device const float* gate [[buffer(0)]],
    device const float* up [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant uint& count [[buffer(3)]],
    uint i [[thread_position_in_grid]]) {
  if (i < count) y[i] = (SOURCE == SILU ? silu(gate[i]) : gelu(gate[i])) * up[i];
}

template [[host_name("gated_silu")]] kernel decltype(gated<SILU>) gated<SILU>;
template [[host_name("gated_gelu")]] kernel decltype(gated<GELU>) gated<GELU>;

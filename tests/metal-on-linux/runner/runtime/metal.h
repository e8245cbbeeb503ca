// The part of the Metal Shading Language that the project's shaders use, in C++ for clang on x86-64.
//
// Vectors are clang's own, simd operations and barriers are rendezvous of fibers. Address spaces are erased at the end of
// this file (the lint checks them), attributes by ../src/signature.rs, which reads the kernels' arguments from them.
#pragma once
#pragma clang system_header
#include "fibers.h"

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef _Float16 half;
#define VECTORS(T) \
  typedef T T##2 __attribute__((ext_vector_type(2))); \
  typedef T T##4 __attribute__((ext_vector_type(4)));
VECTORS(float)
VECTORS(half)
VECTORS(uint)
VECTORS(int)
VECTORS(ushort)
VECTORS(uchar)
VECTORS(char)
VECTORS(ulong)
#undef VECTORS
#define METAL_FUNC inline __attribute__((always_inline))

extern "C" {
float expf(float) noexcept;
float tanhf(float) noexcept;
float sqrtf(float) noexcept;
}

namespace metal {

METAL_FUNC float exp(float x) { return expf(x); }
METAL_FUNC float rsqrt(float x) { return 1 / sqrtf(x); }
METAL_FUNC float sqrt(float x) { return sqrtf(x); }
METAL_FUNC float round(float x) { return __builtin_roundf(x); }
METAL_FUNC float abs(float x) { return __builtin_fabsf(x); }
template <class T> METAL_FUNC T min(T a, T b) { return b < a ? b : a; }
template <class T> METAL_FUNC T max(T a, T b) { return a < b ? b : a; }
METAL_FUNC float clamp(float x, float low, float high) { return min(max(x, low), high); }
METAL_FUNC float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
namespace precise {
METAL_FUNC float tanh(float x) { return tanhf(x); }
}

template <class To, class From> METAL_FUNC To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  return __builtin_bit_cast(To, from);
}

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
METAL_FUNC void threadgroup_barrier(mem_flags, int line = __builtin_LINE()) { runner::barrier(line); }

template <class T> METAL_FUNC T simd_shuffle(T value, ushort from, int line = __builtin_LINE()) {
  const runner::Meeting* met = runner::meet(&value, sizeof value, line);
  if (from > 31) runner::fail("a shuffle from a lane above 31", line);
  __builtin_memcpy(&value, met->slots[from & 31], sizeof value);
  return value;
}
template <class T> METAL_FUNC T simd_shuffle_xor(T value, ushort mask, int line = __builtin_LINE()) {
  return simd_shuffle(value, ushort(runner::lane() ^ mask), line);
}
template <class T, class F> METAL_FUNC T simd_reduce(T value, int line, F join) {
  runner::Meeting* met = runner::meet(&value, sizeof value, line);
  T all;
  if (met->made) {
    __builtin_memcpy(&all, met->result, sizeof all);
    return all;
  }
  __builtin_memcpy(&all, met->slots[0], sizeof all);
  for (int i = 1; i < 32; i++) {
    T next;
    __builtin_memcpy(&next, met->slots[i], sizeof next);
    all = join(all, next);
  }
  __builtin_memcpy(met->result, &all, sizeof all);
  met->made = true;
  return all;
}
template <class T> METAL_FUNC T simd_sum(T value, int line = __builtin_LINE()) {
  return simd_reduce(value, line, [](T a, T b) { return a + b; });
}
template <class T> METAL_FUNC T simd_max(T value, int line = __builtin_LINE()) {
  return simd_reduce(value, line, [](T a, T b) { return a < b ? b : a; });
}

// 8 x 8 values, two a lane: row lane / 4, columns 2 (lane % 4) and the next. Apple's own order is not specified.
struct simdgroup_float8x8 {
  float element[2];
  simdgroup_float8x8() = default;
  METAL_FUNC explicit simdgroup_float8x8(float diagonal) {
    const uint row = runner::lane() / 4, col = 2 * (runner::lane() % 4);
    for (uint i = 0; i < 2; i++) element[i] = row == col + i ? diagonal : 0;
  }
};
METAL_FUNC void simdgroup_load(
    simdgroup_float8x8& m, const float* from, ulong stride, ulong2 = ulong2(0ul), bool transposed = false,
    int line = __builtin_LINE()) {
  runner::meet(nullptr, 0, line);
  const uint row = runner::lane() / 4, col = 2 * (runner::lane() % 4);
  for (uint i = 0; i < 2; i++) m.element[i] = transposed ? from[(col + i) * stride + row] : from[row * stride + col + i];
}
METAL_FUNC void simdgroup_store(const simdgroup_float8x8& m, float* to, ulong stride, int line = __builtin_LINE()) {
  runner::meet(nullptr, 0, line);
  const uint row = runner::lane() / 4, col = 2 * (runner::lane() % 4);
  for (uint i = 0; i < 2; i++) to[row * stride + col + i] = m.element[i];
}
METAL_FUNC void simdgroup_multiply_accumulate(
    simdgroup_float8x8& d, const simdgroup_float8x8& a, const simdgroup_float8x8& b, const simdgroup_float8x8& c,
    int line = __builtin_LINE()) {
  const float mine[4] = {a.element[0], a.element[1], b.element[0], b.element[1]};
  const runner::Meeting* met = runner::meet(mine, sizeof mine, line);
  const uint row = runner::lane() / 4, col = 2 * (runner::lane() % 4);
  float sums[2] = {c.element[0], c.element[1]};
  for (uint k = 0; k < 8; k++) {
    const float* left = (const float*)met->slots[4 * row + k / 2];
    const float* right = (const float*)met->slots[4 * k + col / 2];
    for (uint i = 0; i < 2; i++) sums[i] += left[k % 2] * right[2 + i];
  }
  for (uint i = 0; i < 2; i++) d.element[i] = sums[i];
}

}  // namespace metal

// How a kernel's parameter of type T is made from a thread and the argument's source.
namespace runner {
template <class T> struct Take {
  static METAL_FUNC T from(const Thread& thread, Argument a) { return T(thread.builtin[a.source][0]); }
};
template <> struct Take<uint2> {
  static METAL_FUNC uint2 from(const Thread& thread, Argument a) {
    return uint2{thread.builtin[a.source][0], thread.builtin[a.source][1]};
  }
};
template <class T> struct Take<T*> {
  static METAL_FUNC T* from(const Thread& thread, Argument a) {
    return (T*)(a.source == SHARED ? thread.shared : thread.buffers)[a.index];
  }
};
template <class T> struct Take<T&> {
  static METAL_FUNC T& from(const Thread& thread, Argument a) { return *(T*)thread.buffers[a.index]; }
};
template <int... I> struct Indices {};
template <int N, int... I> struct UpTo : UpTo<N - 1, N - 1, I...> {};
template <int... I> struct UpTo<0, I...> { typedef Indices<I...> type; };
template <auto F> struct Call;
template <class... A, void (*F)(A...)> struct Call<F> {
  template <int... I> static METAL_FUNC void with(const Thread& thread, const Argument* a, Indices<I...>) {
    F(Take<A>::from(thread, a[I])...);
  }
  static void run(const Thread& thread, const Argument* a) { with(thread, a, typename UpTo<sizeof...(A)>::type()); }
};
}  // namespace runner

#define device
#define constant const
#define threadgroup
#define thread
#define kernel

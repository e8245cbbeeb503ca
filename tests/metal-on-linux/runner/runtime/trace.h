// What is seen of memory accesses where a library of shaders is compiled with TRACED: see trace.cpp.
#pragma once
#include "fibers.h"

namespace runner {

// What a launch did to one buffer, in bytes.
struct Traffic {
  uint64_t loaded;    // by all lanes
  uint64_t fetched;   // each byte once a simdgroup, as if lanes and repetitions were served from the cache
  uint64_t distinct;  // each byte once
  uint64_t stored;
};

uint32_t thread_index();

#ifdef TRACED
void trace_begin(void* const* buffers, const size_t* bytes, int count);
void trace_group();
void trace_barrier();
void* trace_shared(int index, size_t bytes);
void trace_free_shared(void* memory, size_t bytes);
void trace_end(Traffic* traffic, char* fault, size_t size);
#else
inline void trace_begin(void* const*, const size_t*, int) {}
inline void trace_group() {}
inline void trace_barrier() {}
inline void* trace_shared(int, size_t bytes) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, bytes ? bytes : 1) ? nullptr : memory;
}
inline void trace_free_shared(void* memory, size_t) { free(memory); }
inline void trace_end(Traffic*, char*, size_t) {}
#endif

}  // namespace runner

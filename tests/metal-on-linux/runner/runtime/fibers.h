// What compiled shaders and the runtime know of each other. Neither includes a C library.
#pragma once

typedef unsigned char uint8_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;

namespace runner {

// Where an argument of a kernel comes from. The order is that of `Source` in ../src/signature.rs.
enum Source : int {
  BUFFER,
  SHARED,
  THREAD_POSITION_IN_GRID,
  THREADGROUP_POSITION_IN_GRID,
  THREAD_INDEX_IN_THREADGROUP,
  THREADS_PER_THREADGROUP,
  SIMDGROUPS_PER_THREADGROUP,
  SIMDGROUP_INDEX_IN_THREADGROUP,
  THREAD_INDEX_IN_SIMDGROUP,
  SOURCES,
};

struct Argument {
  Source source;
  int index;
};

// One thread of the grid, as a kernel sees it.
struct Thread {
  void* const* buffers;
  void* const* shared;
  uint32_t builtin[SOURCES][3];
};

struct Entry {
  const char* name;
  void (*run)(const Thread&, const Argument*);
  const Argument* arguments;
};

// Where the lanes of a simdgroup meet: what each of them brought, and a place for what is made of it once.
constexpr size_t SLOT = 32;
struct Meeting {
  alignas(64) uint8_t slots[32][SLOT];
  alignas(64) uint8_t result[SLOT];
  bool made;
};

Meeting* meet(const void* value, size_t size, int line);
void barrier(int line);
uint32_t lane();
void fail(const char* what, int line);

}  // namespace runner

// Made for each library of shaders.
extern const runner::Entry runner_entries[];
extern const int runner_entry_count;

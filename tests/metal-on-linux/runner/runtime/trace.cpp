// Looks at every load and store of a shader, which clang's SanitizerCoverage announces (trace-loads, trace-stores).
//
// Buffers and threadgroup memory lie in one arena with gaps between them, so that an access to the arena outside of all
// of them is out of bounds; stacks and constants lie outside the arena and are not looked at. For each byte it is known who
// touched it last, and after how many barriers: two threads that touch a byte, one of them writing, without a barrier
// between them, race, whatever the order in which they ran; threadgroups race without any remedy.
#include "trace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <vector>

namespace runner {
namespace {

constexpr size_t ARENA = 1ul << 34, GAP = 1 << 12;
constexpr uint32_t NOBODY = ~0u, MANY = ~0u - 1;

struct Byte {
  uint32_t write_epoch = 0, read_epoch = 0;  // 0: not in this launch
  uint32_t writer = NOBODY, reader = NOBODY;
  uint32_t fetched_by = NOBODY;
};

struct Region {
  char* begin;
  size_t bytes;
  int index;
  bool shared;
  std::vector<Byte> shadow;
  Traffic traffic{};
};

char* arena;
size_t used;
std::vector<Region> regions;
uint32_t epoch, group_epoch, group_number;
char message[200];

// Memory of the arena, which ends where a gap begins.
char* trace_allocate(size_t bytes) {
  if (!arena) {
    arena = (char*)mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) abort();
  }
  if (used + bytes + 2 * GAP > ARENA) abort();
  char* memory = arena + used + GAP;
  used = (used + bytes + 2 * GAP - 1) / GAP * GAP + GAP;
  return memory;
}

void complain(const char* what, const Region* region, long offset, int size) {
  if (message[0]) return;
  if (!region) {
    snprintf(message, sizeof message, "%s, of %d bytes", what, size);
    return;
  }
  snprintf(message, sizeof message, "%s: %s %d, byte %ld of %zu, access of %d bytes", what,
           region->shared ? "threadgroup memory" : "buffer", region->index, offset, region->bytes, size);
}

// Whether an access in `then` by `who` is unordered to one of this thread, now.
bool unordered(uint32_t then, uint32_t who) {
  if (then == 0) return false;
  return then < group_epoch || (then == epoch && who != thread_index());
}

void touch(const void* address, int size, bool store) {
  const char* at = (const char*)address;
  if (at < arena || at >= arena + ARENA) return;
  for (auto& region : regions) {
    if (at < region.begin || at >= region.begin + region.bytes) continue;
    const long offset = at - region.begin;
    if (at + size > region.begin + region.bytes) return complain("an access across the end", &region, offset, size);
    if ((size_t)at % size) return complain("an access that is not aligned", &region, offset, size);
    const uint32_t me = thread_index(), simdgroup = group_number * 32 + me / 32;
    (store ? region.traffic.stored : region.traffic.loaded) += size;
    for (Byte* b = &region.shadow[offset]; b < &region.shadow[offset] + size; b++) {
      if (unordered(b->write_epoch, b->writer)) complain("a race with a store", &region, offset, size);
      if (store) {
        if (unordered(b->read_epoch, b->reader)) complain("a race with a load", &region, offset, size);
        b->write_epoch = epoch;
        b->writer = me;
      } else {
        region.traffic.distinct += b->fetched_by == NOBODY;
        region.traffic.fetched += b->fetched_by != simdgroup;
        b->fetched_by = simdgroup;
        b->reader = b->read_epoch == epoch && b->reader != me ? MANY : me;
        b->read_epoch = epoch;
      }
    }
    return;
  }
  complain("an access out of bounds", nullptr, 0, size);
}

}  // namespace

void trace_begin(void* const* buffers, const size_t* bytes, int count) {
  regions.clear();
  message[0] = 0;
  epoch = group_epoch = group_number = 1;
  for (int i = 0; i < count; i++) {
    bool known = false;  // the same memory may be bound twice
    for (auto& region : regions) known |= region.begin == buffers[i];
    if (!known) regions.push_back({(char*)buffers[i], bytes[i], i, false, std::vector<Byte>(bytes[i])});
  }
}

void trace_group() {
  group_epoch = ++epoch;
  group_number++;
  for (auto& region : regions) {
    if (region.shared) region.shadow.assign(region.bytes, Byte());
  }
}

void trace_barrier() { epoch++; }

void* trace_shared(int index, size_t bytes) {
  char* memory = trace_allocate(bytes);
  regions.push_back({memory, bytes, index, true, std::vector<Byte>(bytes)});
  return memory;
}

void trace_free_shared(void*, size_t) {}

void trace_end(Traffic* traffic, char* fault, size_t size) {
  for (auto& region : regions) {
    if (!region.shared && traffic) traffic[region.index] = region.traffic;
  }
  if (message[0] && !fault[0]) snprintf(fault, size, "%s", message);
}

}  // namespace runner

extern "C" {
void* runner_allocate(size_t bytes) { return runner::trace_allocate(bytes); }
void runner_reset() { runner::used = 0; }
#define TOUCH(N) \
  void __sanitizer_cov_load##N(const void* at) { runner::touch(at, N, false); } \
  void __sanitizer_cov_store##N(const void* at) { runner::touch(at, N, true); }
TOUCH(1)
TOUCH(2)
TOUCH(4)
TOUCH(8)
TOUCH(16)
}

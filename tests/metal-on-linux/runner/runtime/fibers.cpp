// Runs a grid of threads as fibers: the threads of a threadgroup take turns on one processor.
//
// A thread runs until it comes to a simd operation or a barrier, where it waits for the others. An operation that not all
// lanes of the simdgroup come to, or a barrier that not all threads come to, is a fault and ends the launch: such shaders
// have no defined meaning.
#include "fibers.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "trace.h"

#ifdef SANITIZED
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

using namespace runner;

// Saves the callee's registers and the stack, and goes on where the other stack left off.
asm(R"(
.text
.p2align 4
runner_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void runner_switch(void** save, void* load);

namespace {

constexpr size_t STACK = 128 << 10;
constexpr uint32_t MOST_THREADS = 1024;
constexpr uint32_t ALL = ~0u;
constexpr int SCHEDULER = -1;

enum Order : int { FORWARD, REVERSE, RANDOM };

}  // namespace

// A launch, as ../src/launch.rs hands it over, and what came of it.
struct RunnerLaunch {
  const char* kernel;
  uint32_t groups[3];
  uint32_t threads[3];
  void* const* buffers;
  const size_t* buffer_bytes;
  int buffer_count;
  const size_t* shared_bytes;
  int shared_count;
  int order;
  uint64_t seed;
  int workers;
  runner::Traffic* traffic;  // of each buffer, when traced
  uint64_t simd_operations;
  uint64_t barriers;
  char fault[256];
};

namespace {

struct Simdgroup {
  uint32_t ready, arrived, done;
  uint64_t meetings;
  int lines[32];
  Meeting bank[2];
};

struct Worker {
  const RunnerLaunch* launch;
  const Entry* entry;
  uint64_t random;
  char* stacks;
  void* scheduler;
  const void* scheduler_bottom;
  size_t scheduler_bytes;
  std::vector<void*> fibers;
  std::vector<Simdgroup> simdgroups;
  std::vector<void*> shared;
  std::vector<int> barrier_lines;  // of each thread that waits at a barrier, else 0
  uint32_t group[3];
  int current;
  uint64_t simd_operations, barriers;
  char fault[256];

  uint32_t thread_count() const { return launch->threads[0] * launch->threads[1] * launch->threads[2]; }
  void* stack_top(int thread) const { return stacks + STACK * (thread + 1); }

  // One of the lanes of a mask.
  int pick(uint32_t mask) {
    switch (launch->order) {
      case FORWARD: return __builtin_ctz(mask);
      case REVERSE: return 31 - __builtin_clz(mask);
      default: {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        const int from = random & 31;
        const uint32_t above = mask >> from << from;
        return __builtin_ctz(above ? above : mask);
      }
    }
  }

  void go_on(Simdgroup& g) {
    const int base = current / 32 * 32, from = current;
    if (g.ready) {
      const int lane = pick(g.ready);
      if (base + lane == from) return;
      current = base + lane;
      switch_stack(&fibers[from], fibers[current], current);
    } else {
      switch_stack(&fibers[from], scheduler, SCHEDULER);
    }
  }

  // Saves where this stack is, and goes on with another, that of a thread or the scheduler's.
  void switch_stack(void** save, void* load, int to) {
#ifdef SANITIZED
    void* fake = nullptr;
    const void* bottom = to == SCHEDULER ? scheduler_bottom : stacks + STACK * to;
    __sanitizer_start_switch_fiber(&fake, bottom, to == SCHEDULER ? scheduler_bytes : STACK);
    runner_switch(save, load);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
    (void)to;
    runner_switch(save, load);
#endif
  }

  void fault_at(const char* what, int line, int other) {
    if (!fault[0]) snprintf(fault, sizeof fault, "%s (line %d, line %d)", what, line, other);
  }

  void run_simdgroup(int index) {
    Simdgroup& g = simdgroups[index];
    while (g.ready && !fault[0]) {
      current = 32 * index + pick(g.ready);
      switch_stack(&scheduler, fibers[current], current);
    }
    if (g.arrived && !fault[0]) {
      const int line = g.lines[__builtin_ctz(g.arrived)];
      fault_at(g.done ? "a simd operation after a lane has returned" : "a simd operation that not all lanes come to", line,
               line);
    }
  }

  void run_group();
};

thread_local Worker* worker;

// Stacks for the threads of a threadgroup, kept for the next launch: their pages are costly when new.
std::mutex kept_lock;
std::vector<char*> kept;

char* take_stacks() {
  std::lock_guard<std::mutex> guard(kept_lock);
  if (kept.empty()) {
    void* made = mmap(nullptr, STACK * MOST_THREADS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return made == MAP_FAILED ? nullptr : (char*)made;
  }
  char* stacks = kept.back();
  kept.pop_back();
  return stacks;
}

void keep_stacks(char* stacks) {
  std::lock_guard<std::mutex> guard(kept_lock);
  kept.push_back(stacks);
}

void fiber_main() {
  Worker* w = worker;
#ifdef SANITIZED
  const void* bottom;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  // The first thread of a launch comes from the scheduler, others may come from threads.
  if (!w->scheduler_bottom) {
    w->scheduler_bottom = bottom;
    w->scheduler_bytes = bytes;
  }
#endif
  const int index = w->current;
  Thread thread{};
  thread.buffers = w->launch->buffers;
  thread.shared = w->shared.data();
  const uint32_t* size = w->launch->threads;
  const uint32_t at[3] = {index % size[0], index / size[0] % size[1], index / (size[0] * size[1])};
  for (int d = 0; d < 3; d++) {
    thread.builtin[THREAD_POSITION_IN_GRID][d] = w->group[d] * size[d] + at[d];
    thread.builtin[THREADGROUP_POSITION_IN_GRID][d] = w->group[d];
    thread.builtin[THREADS_PER_THREADGROUP][d] = size[d];
  }
  thread.builtin[THREAD_INDEX_IN_THREADGROUP][0] = index;
  thread.builtin[SIMDGROUPS_PER_THREADGROUP][0] = w->thread_count() / 32;
  thread.builtin[SIMDGROUP_INDEX_IN_THREADGROUP][0] = index / 32;
  thread.builtin[THREAD_INDEX_IN_SIMDGROUP][0] = index % 32;
  w->entry->run(thread, w->entry->arguments);
  Simdgroup& g = w->simdgroups[index / 32];
  g.ready &= ~(1u << index % 32);
  g.done |= 1u << index % 32;
  w->go_on(g);
  __builtin_trap();
}

void Worker::run_group() {
  const int count = thread_count();
  for (int i = 0; i < count; i++) {
    // What `runner_switch` takes from a new stack: six registers, and where to go. At its entry a function finds the
    // stack at 8 below a multiple of 16.
    void** top = (void**)stack_top(i);
    top[-2] = (void*)fiber_main;
    fibers[i] = top - 8;
    barrier_lines[i] = 0;
  }
  for (auto& g : simdgroups) {
    g.ready = ALL;
    g.arrived = g.done = 0;
    g.meetings = 0;
  }
  const int groups = simdgroups.size();
  for (;;) {
    const int first = launch->order == RANDOM ? pick(ALL) % groups : 0;
    for (int i = 0; i < groups && !fault[0]; i++) {
      const int at = (first + i) % groups;
      run_simdgroup(launch->order == REVERSE ? groups - 1 - at : at);
    }
    if (fault[0]) return;
    int waiting = 0, line = 0;
    for (int i = 0; i < count; i++) {
      if (!barrier_lines[i]) continue;
      if (line && line != barrier_lines[i]) fault_at("threads at different barriers", line, barrier_lines[i]);
      line = barrier_lines[i];
      waiting++;
    }
    if (!waiting) return;
    if (waiting != count) fault_at("a barrier that not all threads come to", line, line);
    if (fault[0]) return;
    barriers++;
    trace_barrier();
    for (auto& g : simdgroups) g.ready = ALL;
    for (int i = 0; i < count; i++) barrier_lines[i] = 0;
  }
}

void work(const Entry* entry, RunnerLaunch* launch, std::atomic<uint64_t>* next, std::mutex* lock) {
  Worker w{};
  worker = &w;
  w.launch = launch;
  w.entry = entry;
  w.random = launch->seed * 0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d;
  const int count = w.thread_count();
  w.stacks = take_stacks();
  if (!w.stacks) {
    std::lock_guard<std::mutex> guard(*lock);
    strcpy(launch->fault, "no memory for the threads' stacks");
    return;
  }
  w.fibers.resize(count);
  w.barrier_lines.resize(count);
  w.simdgroups.resize(count / 32);
  w.shared.resize(launch->shared_count);
  for (int i = 0; i < launch->shared_count; i++) w.shared[i] = trace_shared(i, launch->shared_bytes[i]);
  const uint32_t* n = launch->groups;
  const uint64_t groups = (uint64_t)n[0] * n[1] * n[2];
  while (!w.fault[0]) {
    uint64_t i = next->fetch_add(1);
    if (i >= groups) break;
    if (launch->order != FORWARD) i = groups - 1 - i;
    w.group[0] = i % n[0];
    w.group[1] = i / n[0] % n[1];
    w.group[2] = i / ((uint64_t)n[0] * n[1]);
    // What a threadgroup finds in its memory is not specified: no numbers.
    for (int s = 0; s < launch->shared_count; s++) memset(w.shared[s], 0xff, launch->shared_bytes[s]);
    trace_group();
    w.run_group();
  }
  for (int i = 0; i < launch->shared_count; i++) trace_free_shared(w.shared[i], launch->shared_bytes[i]);
#ifdef SANITIZED
  // Threads that were left off where a fault was seen never took their variables back.
  if (w.fault[0]) __asan_unpoison_memory_region(w.stacks, STACK * count);
#endif
  keep_stacks(w.stacks);
  std::lock_guard<std::mutex> guard(*lock);
  launch->simd_operations += w.simd_operations;
  launch->barriers += w.barriers;
  if (w.fault[0] && !launch->fault[0]) strcpy(launch->fault, w.fault);
}

}  // namespace

namespace runner {

Meeting* meet(const void* value, size_t size, int line) {
  Worker* w = worker;
  const int lane = w->current % 32;
  Simdgroup& g = w->simdgroups[w->current / 32];
  Meeting* bank = &g.bank[g.meetings & 1];
  if (size) __builtin_memcpy(bank->slots[lane], value, size);
  g.lines[lane] = line;
  g.ready &= ~(1u << lane);
  g.arrived |= 1u << lane;
  if (g.arrived == ALL) {
    for (int i = 0; i < 32; i++) {
      if (g.lines[i] != line) w->fault_at("lanes at different simd operations", line, g.lines[i]);
    }
    bank->made = false;
    g.meetings++;
    g.arrived = 0;
    g.ready = ALL;
    w->simd_operations++;
    if (w->fault[0]) g.ready = 0;
  }
  w->go_on(g);
  return bank;
}

void barrier(int line) {
  Worker* w = worker;
  Simdgroup& g = w->simdgroups[w->current / 32];
  w->barrier_lines[w->current] = line;
  g.ready &= ~(1u << w->current % 32);
  w->go_on(g);
}

uint32_t lane() { return worker->current % 32; }
uint32_t thread_index() { return worker ? worker->current : 0; }
void fail(const char* what, int line) { worker->fault_at(what, line, line); }

}  // namespace runner

#ifdef SANITIZED
namespace {

std::vector<void*> allocated;

// What AddressSanitizer has found is a fault of the launch: the kind of error, and what was done.
void report(const char* text) {
  if (!worker || worker->fault[0]) return;
  const char* kind = strstr(text, "AddressSanitizer: ");
  const char* access = strstr(text, "of size ");
  const bool store = strstr(text, "WRITE of size ");
  if (!kind) return;
  kind += strlen("AddressSanitizer: ");
  snprintf(worker->fault, sizeof worker->fault, "AddressSanitizer: %.*s, a %s of %d bytes", (int)strcspn(kind, " "), kind,
           store ? "store" : "load", access ? atoi(access + strlen("of size ")) : 0);
}

}  // namespace

// Memory of its own for each buffer, with poison around it.
extern "C" void* runner_allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes ? bytes : 1)) abort();
  allocated.push_back(memory);
  return memory;
}
extern "C" void runner_reset() {
  __asan_set_error_report_callback(report);
  for (void* memory : allocated) free(memory);
  allocated.clear();
}
#endif

// 0, or 1 when there is no such kernel, 2 for a number of threads that Metal does not take or this runner does not.
extern "C" int runner_run(RunnerLaunch* launch) {
  const Entry* entry = nullptr;
  for (int i = 0; i < runner_entry_count; i++) {
    if (!strcmp(runner_entries[i].name, launch->kernel)) entry = &runner_entries[i];
  }
  if (!entry) return 1;
  const uint32_t threads = launch->threads[0] * launch->threads[1] * launch->threads[2];
  if (threads == 0 || threads > MOST_THREADS || threads % 32) return 2;
  trace_begin(launch->buffers, launch->buffer_bytes, launch->buffer_count);
  std::atomic<uint64_t> next{0};
  std::mutex lock;
  std::vector<std::thread> workers;
  for (int i = 1; i < launch->workers; i++) workers.emplace_back(work, entry, launch, &next, &lock);
  work(entry, launch, &next, &lock);
  for (auto& thread : workers) thread.join();
  trace_end(launch->traffic, launch->fault, sizeof launch->fault);
  return 0;
}

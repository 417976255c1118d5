// What a kernel compiled for the CPU and the library that runs it (fibers.cpp) share: the block at work, barriers, collectives.
#pragma once
#include <cstddef>
#include <cstdint>

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace emulation {

struct Thread {           // what kernels may know of a CUDA thread; the library knows more
    dim3 index;
    int lane;
};

struct Block {
    dim3 index, threads, grid;
    Thread* thread;            // the one that runs now
    unsigned char* shared;     // dynamic shared memory, poisoned before each block
    size_t shared_bytes;
    uint64_t weight_bytes;     // read through the load helpers of primitives.cuh
};

// one OS thread runs one block at a time
extern __thread Block* block __attribute__((tls_model("initial-exec")));

// every thread of the block must arrive, at the same line. A: how many came with a true predicate
int barrier(bool predicate, int line, const char* file);

// every living lane named in mask must arrive, with the same mask and at the same line; the last one runs what(lanes, mask) once for all:
// lanes[i] is what lane i brought, null for lanes not in the mask (or that have returned)
typedef void (*Collective)(void* const* lanes, unsigned mask);
void collective(unsigned mask, void* mine, Collective what, int line, const char* file);

// asynchronous copies of 16 bytes, performed no sooner than waited for; `to` holds poison until then
void copy_async(void* to, const void* from, size_t size);
void copy_commit();
void copy_wait(int pending_groups);

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// run a grid: body(arguments) in every thread. touch() makes static shared memory exist in an OS thread and returns an address in it.
// A: 0, or 1 with error() set
int launch(const char* name, void (*body)(void*), void* arguments, const unsigned* grid, const unsigned* threads, size_t shared, void* (*touch)());

}  // namespace emulation

extern "C" {
const char* emulation_error();             // of the last launch that failed, "" if none did; stays until cleared
void emulation_clear();
void emulation_order(unsigned order);      // 0: threads and blocks in order, 1: backwards, others: shuffled by this seed
uint64_t emulation_weight_bytes(int reset);
}

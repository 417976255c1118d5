// CUDA C for g++: put before a kernel's source (-include), it makes CUDA's words mean what fibers.cpp does on a CPU. Kernels see
// GGRUN_EMULATION defined; __CUDA_ARCH__ comes from the command line. Unlike a GPU: no warp runs in step except in collectives, floats are
// never fused unless the source says fmaf, and __expf and friends are exact.
#pragma once
#define GGRUN_EMULATION 1
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include "fibers.h"

#define __global__ __attribute__((visibility("default")))   // what makes a function a kernel to the stand-in compiler
#define __device__ __attribute__((unused))                   // no linkage said: member functions are device functions, too
#define __host__
#define __constant__ const
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static thread_local
#define __grid_constant__

using std::max;
using std::min;

#define EMULATION_VECTOR(T, NAME) \
    struct alignas(2 * sizeof(T)) NAME##2 { T x, y; }; \
    struct NAME##3 { T x, y, z; }; \
    struct alignas(sizeof(T) > 4 ? 16 : 4 * sizeof(T)) NAME##4 { T x, y, z, w; }; \
    static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; } \
    static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; } \
    static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATION_VECTOR(signed char, char)
EMULATION_VECTOR(unsigned char, uchar)
EMULATION_VECTOR(short, short)
EMULATION_VECTOR(unsigned short, ushort)
EMULATION_VECTOR(int, int)
EMULATION_VECTOR(unsigned, uint)
EMULATION_VECTOR(float, float)
EMULATION_VECTOR(double, double)
EMULATION_VECTOR(long long, longlong)
#undef EMULATION_VECTOR

#define threadIdx (emulation::block->thread->index)
#define blockIdx (emulation::block->index)
#define blockDim (emulation::block->threads)
#define gridDim (emulation::block->grid)
#define warpSize 32

#include "halves.h"
#include "intrinsics.h"

namespace emulation {

// arguments as cuLaunchKernel's CU_LAUNCH_PARAM_BUFFER brings them: packed at their natural alignment
template <class... A> struct Packed {
    const char* bytes;
    size_t at = 0;
    template <class T> T take() {
        at = (at + alignof(T) - 1) / alignof(T) * alignof(T);
        T value;
        memcpy(&value, bytes + at, sizeof(T));
        at += sizeof(T);
        return value;
    }
    static size_t size() {
        size_t end = 0;
        ((end = (end + alignof(A) - 1) / alignof(A) * alignof(A) + sizeof(A)), ...);
        return end;
    }
};

template <class... A> int launch_packed(const char* name, void (*kernel)(A...), const char* bytes, size_t size, const unsigned* grid,
                                        const unsigned* threads, size_t shared, void* (*touch)()) {
    if (size != Packed<A...>::size()) return 2;
    struct Call { void (*kernel)(A...); const char* bytes; } call{kernel, bytes};
    auto body = [](void* data) {
        auto& c = *static_cast<Call*>(data);
        Packed<A...> packed{c.bytes};
        struct In { void (*kernel)(A...); In(void (*k)(A...), A... values) : kernel(k) { k(values...); } };
        In{c.kernel, packed.template take<A>()...};         // braces: left to right
    };
    return launch(name, body, &call, grid, threads, shared, touch);
}

}  // namespace emulation

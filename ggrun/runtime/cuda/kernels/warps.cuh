// Sums and maxima over a warp or a block, in a fixed order. All threads of the warp (or block) call them together.
#pragma once
#include "primitives.cuh"

#define INFINITE __int_as_float(0x7f800000)  // CUDA C has neither INFINITY nor NAN of its own
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
    for (int step = 16; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, step));
    return v;
}

// Sum over a block of whole warps. Called once in a kernel: its shared memory is not guarded against a second use.
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float parts[32];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f);
}

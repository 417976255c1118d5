"""Kernels that only the emulation's own tests have: each uses one thing rightly, or wrongly on purpose."""

SAMPLES = r"""
#pragma once
#include "primitives.cuh"

// y[i] = x[i] * factor; a tail that does not fill its block
#define KERNEL_scale() extern "C" __global__ void scale(const float* x, float* y, int n, float factor, long long offset) { \
    const int i = blockIdx.x * blockDim.x + threadIdx.x; \
    if (i < n) y[i + offset] = x[i] * factor; \
}

template <int BARRIER> __device__ void shift(const float* x, float* y) {
    __shared__ float held[256];
    held[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncthreads();
    y[threadIdx.x] = held[(threadIdx.x + 37) % 256];
}
#define KERNEL_shift(BARRIER) extern "C" __global__ void shift__##BARRIER(const float* x, float* y) { shift<BARRIER>(x, y); }

template <int WAIT> __device__ void fetch(const uint8_t* x, uint8_t* y) {
    DYNAMIC_SHARED(uint8_t, held);
    const int i = threadIdx.x * 16;
    for (int part = 0; part < 2; part++) { cp_async16_weights(held + part * 512 + i, x + part * 512 + i); cp_async_commit(); }
    cp_async_wait<WAIT>();
    __syncthreads();
    for (int k = 0; k < 32; k++) y[threadIdx.x * 32 + k] = held[threadIdx.x * 32 + k];
}
#define KERNEL_fetch(WAIT) extern "C" __global__ void fetch__##WAIT(const uint8_t* x, uint8_t* y) { fetch<WAIT>(x, y); }

#define KERNEL_diverge() extern "C" __global__ void diverge(float* y) { if (threadIdx.x < 40) __syncthreads(); y[threadIdx.x] = 1; }
#define KERNEL_leave() extern "C" __global__ void leave(float* y) { if (threadIdx.x == 3) return; __syncthreads(); y[threadIdx.x] = 1; }
__device__ void apart_body(int* y) {
    int v = threadIdx.x;
    if (threadIdx.x & 1)
        v = __shfl_xor_sync(0xffffffff, v, 2);
    else
        v = __shfl_xor_sync(0xffffffff, v, 4);
    y[threadIdx.x] = v;
}
#define KERNEL_apart() extern "C" __global__ void apart(int* y) { apart_body(y); }

// halves of a warp, each with its own mask: allowed
__device__ void half_warps_body(int* y) {
    int v = threadIdx.x;
    if (threadIdx.x & 16)
        for (int o = 8; o; o >>= 1) v += __shfl_xor_sync(0xffff0000, v, o);
    else
        for (int o = 8; o; o >>= 1) v = max(v, __shfl_xor_sync(0x0000ffff, v, o));
    y[threadIdx.x] = v;
}
#define KERNEL_half_warps() extern "C" __global__ void half_warps(int* y) { half_warps_body(y); }

#define KERNEL_behind() extern "C" __global__ void behind(const float* x, float* y, int n) { y[threadIdx.x] = x[n + threadIdx.x]; }
#define KERNEL_crooked() extern "C" __global__ void crooked(const char* x, float* y) { y[threadIdx.x] = *(const float*)(x + threadIdx.x); }
#define KERNEL_loads() extern "C" __global__ void loads(const uint8_t* x, unsigned* y) { \
    const int i = threadIdx.x; \
    y[i] = load_u8(x + i) + load_u16(x + 2 * i) + load_u32_a2(x + 2 * i) + load_u32(x + 4 * i) + load_u32x4(x + 16 * i).w; \
}

// c[16][8] += a[16][K] x b[8][K]: one warp, as int8 and as half
__device__ void mma_s8_body(const int8_t* a, const int8_t* b, int* c, int k) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    int sum[4] = {0, 0, 0, 0};
    for (int at = 0; at < k; at += 32) {
        int fa[4], fb[2];
        for (int i = 0; i < 4; i++) fa[i] = *(const int*)(a + (g + i % 2 * 8) * k + at + i / 2 * 16 + t * 4);
        for (int i = 0; i < 2; i++) fb[i] = *(const int*)(b + g * k + at + i * 16 + t * 4);
        if (at / 32 % 2) mma_s8_m16n8k32(sum, fa, fb);
        else { mma_s8_m16n8k16(sum, fa, fb); mma_s8_m16n8k16(sum, fa + 2, fb + 1); }
    }
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sum[i];
}
#define KERNEL_mma_s8() extern "C" __global__ void mma_s8(const int8_t* a, const int8_t* b, int* c, int k) { mma_s8_body(a, b, c, k); }

__device__ void mma_f16_body(const half* a, const half* b, float* c, int k) {
    DYNAMIC_SHARED(half, held);       // a[16][16], then b[8][16] as k x n: b[16][8]
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    float sum[4] = {0, 0, 0, 0};
    for (int at = 0; at < k; at += 16) {
        for (int i = lane; i < 256; i += 32) held[i] = a[i / 16 * k + at + i % 16];
        for (int i = lane; i < 128; i += 32) held[256 + i] = b[i % 8 * k + at + i / 8];
        __syncwarp();
        unsigned fa[4], fb[2];
        ldmatrix_x4(fa, held + lane % 16 * 16 + lane / 16 * 8);
        ldmatrix_x2_trans(fb, held + 256 + lane % 16 * 8);
        mma_f16_m16n8k16(sum, fa, fb);
        __syncwarp();
    }
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sum[i];
}
#define KERNEL_mma_f16() extern "C" __global__ void mma_f16(const half* a, const half* b, float* c, int k) { mma_f16_body(a, b, c, k); }
"""

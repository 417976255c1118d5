// Row kernels: what happens to one row of activations, float32 [rows][n], between two matrix products.
//
// Rows are contiguous and buffers 256-byte aligned, so that rows whose length is a multiple of 4 are read as float4.
// Quantized rows ("q8", n a multiple of 32) are drawn in q8.cuh; there are none when n is no multiple of 4.
#pragma once
#include "primitives.cuh"
#include "q8.cuh"
#include "warps.cuh"

namespace rows {

// VEC consecutive floats, 1 or 4
template <int VEC>
__device__ __forceinline__ void load(float (&v)[VEC], const float* x) {
    if constexpr (VEC == 4) {
        const float4 f = *(const float4*)x;
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    } else {
        v[0] = x[0];
    }
}

template <int VEC>
__device__ __forceinline__ void store(float* y, const float (&v)[VEC]) {
    if constexpr (VEC == 4) {
        *(float4*)y = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        y[0] = v[0];
    }
}

// total = x (+ add); y = rms_norm(total) * w, as float32 and as q8. One block a row; a thread keeps its VEC * PIECES elements in registers.
// add, total, y and q8 may be null; total may be x or add.
template <int VEC, int PIECES>
__device__ __forceinline__ void norm(const float* x, const float* add, float* total, const float* w, float* y, char* q8, int n, float eps) {
    const size_t start = (size_t)blockIdx.x * n;
    float v[PIECES][VEC], squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int i = (p * blockDim.x + threadIdx.x) * VEC;
#pragma unroll
        for (int e = 0; e < VEC; e++) v[p][e] = 0.0f;
        if (i < n) {
            load<VEC>(v[p], x + start + i);
            if (add) {
                float other[VEC];
                load<VEC>(other, add + start + i);
#pragma unroll
                for (int e = 0; e < VEC; e++) v[p][e] += other[e];
            }
            if (total) store<VEC>(total + start + i, v[p]);
        }
#pragma unroll
        for (int e = 0; e < VEC; e++) squares += v[p][e] * v[p][e];
    }
    const float scale = 1.0f / sqrtf(block_sum(squares) / (float)n + eps);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        const int i = (p * blockDim.x + threadIdx.x) * VEC;
        if (i < n) {
            float weight[VEC];
            load<VEC>(weight, w + i);
#pragma unroll
            for (int e = 0; e < VEC; e++) v[p][e] = v[p][e] * scale * weight[e];
            if (y) store<VEC>(y + start + i, v[p]);
        }
        if constexpr (VEC == 4) {
            if (q8) q8_store(q8 + blockIdx.x * (size_t)q8_row_bytes(n), n, i, make_float4(v[p][0], v[p][1], v[p][2], v[p][3]), i < n);
        }
    }
}

// y = act(gate) * up, act = silu, as float32 and (VEC 4) as q8. grid: (rows, pieces of blockDim.x * VEC). y or q8 may be null; y may be
// gate or up.
template <int VEC>
__device__ __forceinline__ void glu(const float* gate, const float* up, float* y, char* q8, int n) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    const size_t at = (size_t)blockIdx.x * n + i;
    float g[VEC], u[VEC];
#pragma unroll
    for (int e = 0; e < VEC; e++) g[e] = u[e] = 0.0f;
    if (i < n) {
        load<VEC>(g, gate + at);
        load<VEC>(u, up + at);
    }
#pragma unroll
    for (int e = 0; e < VEC; e++) g[e] = g[e] / (1.0f + expf(-g[e])) * u[e];
    if (i < n && y) store<VEC>(y + at, g);
    if constexpr (VEC == 4) {
        if (q8) q8_store(q8 + blockIdx.x * (size_t)q8_row_bytes(n), n, i, make_float4(g[0], g[1], g[2], g[3]), i < n);
    }
}

// y[r] = x[ids[r]]. grid: (rows, pieces)
template <int VEC>
__device__ __forceinline__ void take_rows(const float* x, const int* ids, float* y, int n) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    if (i >= n) return;
    float v[VEC];
    load<VEC>(v, x + (size_t)ids[blockIdx.x] * n + i);
    store<VEC>(y + (size_t)blockIdx.x * n + i, v);
}

// y[t] = sum over slots s, in order, of weights[t][s] * x[t][s]. x: [T][n_used][n]. grid: (T, pieces)
template <int VEC>
__device__ __forceinline__ void expert_sum(const float* x, const float* weights, float* y, int n, int n_used) {
    const int i = (blockIdx.y * blockDim.x + threadIdx.x) * VEC;
    if (i >= n) return;
    const float* slots = x + (size_t)blockIdx.x * n_used * n + i;
    float sum[VEC], v[VEC];
#pragma unroll
    for (int e = 0; e < VEC; e++) sum[e] = 0.0f;
    for (int s = 0; s < n_used; s++) {
        const float weight = weights[(size_t)blockIdx.x * n_used + s];
        load<VEC>(v, slots + (size_t)s * n);
#pragma unroll
        for (int e = 0; e < VEC; e++) sum[e] += weight * v[e];
    }
    store<VEC>(y + (size_t)blockIdx.x * n + i, sum);
}

}  // namespace rows

#define KERNEL_norm(VEC, PIECES)                                                                                                           \
    extern "C" __global__ void __launch_bounds__(1024)                                                                                     \
        norm__##VEC##__##PIECES(const float* x, const float* add, float* total, const float* w, float* y, char* q8, int n, float eps) {    \
        rows::norm<VEC, PIECES>(x, add, total, w, y, q8, n, eps);                                                                          \
    }

#define KERNEL_glu(VEC)                                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) glu__##VEC(const float* gate, const float* up, float* y, char* q8, int n) {          \
        rows::glu<VEC>(gate, up, y, q8, n);                                                                                                \
    }

#define KERNEL_take_rows(VEC)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) take_rows__##VEC(const float* x, const int* ids, float* y, int n) {                  \
        rows::take_rows<VEC>(x, ids, y, n);                                                                                                \
    }

#define KERNEL_expert_sum(VEC)                                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                                      \
        expert_sum__##VEC(const float* x, const float* weights, float* y, int n, int n_used) {                                             \
        rows::expert_sum<VEC>(x, weights, y, n, n_used);                                                                                   \
    }

// y = a + b over n elements, wherever rows begin and end
#define KERNEL_add()                                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) add(const float* a, const float* b, float* y, int n) {                               \
        const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 4;                                                                         \
        float u[4], v[4];                                                                                                                  \
        if (i + 4 <= n) {                                                                                                                  \
            rows::load<4>(u, a + i);                                                                                                       \
            rows::load<4>(v, b + i);                                                                                                       \
            for (int e = 0; e < 4; e++) u[e] += v[e];                                                                                      \
            rows::store<4>(y + i, u);                                                                                                      \
        } else {                                                                                                                           \
            for (int j = i; j < n; j++) y[j] = a[j] + b[j];                                                                                \
        }                                                                                                                                  \
    }

// y = rms norm of each of `groups` equal parts of a row, times w (one part long): a warp a part. y may be x.
#define KERNEL_rms_norm_groups()                                                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                                                                      \
        rms_norm_groups(const float* x, const float* w, float* y, int width, float eps, int n_parts) {                                     \
        const int part = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;                                       \
        if (part >= n_parts) return;                                                                                                       \
        const float* from = x + (size_t)part * width;                                                                                      \
        float* to = y + (size_t)part * width;                                                                                              \
        float squares = 0.0f;                                                                                                              \
        for (int i = lane; i < width; i += 32) squares += from[i] * from[i];                                                               \
        const float scale = 1.0f / sqrtf(warp_sum(squares) / (float)width + eps);                                                          \
        for (int i = lane; i < width; i += 32) to[i] = from[i] * scale * w[i];                                                             \
    }

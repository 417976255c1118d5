// float32 rows -> q8 rows (q8.cuh). One lane quantizes four neighbouring elements.
#pragma once
#include "q8.cuh"

// x float32 [n_rows][k], y q8 rows. Grid: x over k / 4 lanes of 128, y = rows.
#define KERNEL_quantize()                                                                                       \
    extern "C" __global__ void __launch_bounds__(128) quantize(const float* x, char* y, int k) {                \
        int at = 4 * (int)(blockIdx.x * blockDim.x + threadIdx.x);                                              \
        float4 v = at < k ? *(const float4*)(x + (long long)blockIdx.y * k + at) : make_float4(0, 0, 0, 0);     \
        q8_store(y + (long long)blockIdx.y * q8_row_bytes(k), k, at, v, at < k);                                \
    }

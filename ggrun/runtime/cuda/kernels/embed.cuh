// Rows of an embedding table, dequantized in the order of operations that quant.reference has: equal to it to the bit.
#pragma once
#include "formats.cuh"

template <class F>
__device__ __forceinline__ void embed_unit(const uint8_t* row, float* y, int unit, int n, float factor) {
    typename F::Raw raw;
    if constexpr (F::FLOAT) {
        F::load(raw, row, unit, n);
        float v[8];
        F::unpack(raw, v);
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (8 * unit + i < n) y[8 * unit + i] = __fmul_rn(v[i], factor);
    } else {
        F::load(raw, row + (long long)(unit / F::UNITS) * F::BYTES, unit % F::UNITS);
        int q[F::PIECES][4];
        float scale[F::PIECES], minimum[F::PIECES];
        F::unpack(raw, unit % F::UNITS, q, scale, minimum);
        float4* out = (float4*)(y + (long long)(unit / F::UNITS) * F::BLOCK + F::first(unit % F::UNITS));
#pragma unroll
        for (int p = 0; p < F::PIECES; p++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float v[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    v[j] = __fmul_rn(scale[p], (float)(signed char)(q[p][i] >> 8 * j));
                    if (F::MINIMA) v[j] = __fsub_rn(v[j], minimum[p]);
                    v[j] = __fmul_rn(v[j], factor);
                }
                out[p * F::STEP / 4 + i] = make_float4(v[0], v[1], v[2], v[3]);
            }
    }
}

// y float32 [tokens][n] = row ids[t] of w * factor; an id outside the table reads its nearest row. Grid: x over units, y = tokens.
#define KERNEL_embed(F)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(128)                                                                         \
        embed__##F(const int* ids, const uint8_t* w, long long row_bytes, float* y, int n, int n_rows, float factor) {             \
        int unit = (int)(blockIdx.x * blockDim.x + threadIdx.x);                                                              \
        int id = min(max(ids[blockIdx.y], 0), n_rows - 1);                                                                    \
        if (unit < units_of_row<F>(n)) embed_unit<F>(w + id * row_bytes, y + (long long)blockIdx.y * n, unit, n, factor);     \
    }

// Plain numbers times many rows of float32: tiles of 64 rows x 64 tokens, 256 threads, each 4 x 4 sums; steps of 32 elements.
#pragma once
#include "formats.cuh"

constexpr int FLOAT_TILE = 64, FLOAT_K = 32, FLOAT_STRIDE = FLOAT_TILE + 4;

__device__ __forceinline__ void put_column(float (*tile)[FLOAT_STRIDE], int column, int part, const float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) tile[8 * part + i][column] = v[i];
}

template <class F, class Columns>
__device__ __forceinline__ void gemm_float_tile(const uint8_t* w, long long row_bytes, const char* x, float* y, const float* bias, int k, int n_out,
                                                int row0, const Columns& columns) {
    __align__(16) __shared__ float weights[FLOAT_K][FLOAT_STRIDE], tokens[FLOAT_K][FLOAT_STRIDE];
    const int at = (int)threadIdx.x / 4, part = (int)threadIdx.x % 4, n_units = units_of_row<F>(k);
    const uint8_t* row = w + min(row0 + at, n_out - 1) * row_bytes;
    const char* activations = x + columns.x_row(at) * 4ll * k;
    const int rows = (int)threadIdx.x % 16 * 4, columns_of_thread = (int)threadIdx.x / 16 * 4;
    float sum[4][4] = {};
    for (int unit = 0; unit < n_units; unit += 4) {
        float v[8] = {}, a[8] = {};
        if (unit + part < n_units) {
            typename F::Raw raw;
            F::load(raw, row, unit + part, k);
            F::unpack(raw, v);
            load_activations(a, activations, unit + part, k);
        }
        __syncthreads();
        put_column(weights, at, part, v);
        put_column(tokens, at, part, a);
        __syncthreads();
#pragma unroll 8
        for (int e = 0; e < FLOAT_K; e++) {
            float4 p = *(const float4*)&weights[e][rows], q = *(const float4*)&tokens[e][columns_of_thread];
            float b[4] = {p.x, p.y, p.z, p.w}, c[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] += b[i] * c[j];
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = row0 + rows + i, column = columns_of_thread + j;
            if (r < n_out && column < columns.count)
                y[(long long)columns.y_row(column) * n_out + r] = sum[i][j] + (bias ? bias[r] : 0.0f);
        }
    __syncthreads();
}

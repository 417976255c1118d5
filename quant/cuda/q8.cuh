// Quantized activations ("q8"), the other factor of every block format. One row of k elements, k a multiple of 32:
//
//   | 0 quants: k int8 | k d: k/32 float32 | k + k/8 s: k/16 float32 | padding to a multiple of 16 |
//
// x ~= d * q, d = max|x| / 127 over 32 elements; s = d * (sum of q over 16 elements), which multiplies minima once.
// Rows below 1e-30 in magnitude are zero: the inverse of their scale would not be finite.
#pragma once
#include "primitives.cuh"

__device__ __forceinline__ int q8_row_bytes(int k) { return (k + k / 8 + k / 4 + 15) & ~15; }
__device__ __forceinline__ int q8_scales_at(int k) { return k; }
__device__ __forceinline__ int q8_sums_at(int k) { return k + k / 8; }

// Writes four neighbouring elements (at: a multiple of 4) of a row. The eight lanes that hold 32 neighbours call it together;
// a whole warp has to call it, `inside` is false where there is nothing to write.
__device__ __forceinline__ void q8_store(void* row, int k, int at, float4 v, bool inside) {
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
    for (int lanes = 1; lanes < 8; lanes *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
    float d = largest < 1e-30f ? 0.0f : largest / 127.0f, inverse = largest < 1e-30f ? 0.0f : 127.0f / largest;
    int a = __float2int_rn(v.x * inverse), b = __float2int_rn(v.y * inverse);
    int c = __float2int_rn(v.z * inverse), e = __float2int_rn(v.w * inverse);
    int sum = a + b + c + e;
#pragma unroll
    for (int lanes = 1; lanes < 4; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    if (!inside) return;
    *(int*)((char*)row + at) = (a & 255) | (b & 255) << 8 | (c & 255) << 16 | e << 24;
    if (at % 32 == 0) ((float*)((char*)row + q8_scales_at(k)))[at / 32] = d;
    if (at % 16 == 0) ((float*)((char*)row + q8_sums_at(k)))[at / 16] = d * (float)sum;
}

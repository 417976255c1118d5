// Weights that are plain numbers: F32, F16, BF16 (the upper half of a float32). A unit of work is eight neighbouring elements.
//
// Rows of a multiple of eight elements are read 16 bytes at a time; others (their rows begin anywhere) element by element.
// Elements past the end of the row are zero.
#pragma once
#include "loads.cuh"

struct PlainNumbers {
    static constexpr bool FLOAT = true, HALVES = false, MINIMA = false;
    static constexpr int BLOCK = 1, PIECES = 1;
};

// Two-byte numbers: the eight of a unit in four words.
struct TwoByteNumbers : PlainNumbers {
    static constexpr int BYTES = 2;
    struct Raw {
        unsigned word[4];
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* row, int unit, int k) {
        const uint8_t* p = row + 16 * (long long)unit;
        if (k % 8 == 0) {
            uint4 v = load_weight<uint4>(p);
            raw.word[0] = v.x, raw.word[1] = v.y, raw.word[2] = v.z, raw.word[3] = v.w;
            return;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int at = 8 * unit + 2 * i;
            unsigned low = at < k ? load_weight<unsigned short>(p + 4 * i) : 0u;
            unsigned high = at + 1 < k ? load_weight<unsigned short>(p + 4 * i + 2) : 0u;
            raw.word[i] = low | high << 16;
        }
    }
};

struct F16 : TwoByteNumbers {
    static __device__ __forceinline__ void unpack(const Raw& raw, float (&v)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) v[2 * i] = low_half(raw.word[i]), v[2 * i + 1] = high_half(raw.word[i]);
    }
};

struct BF16 : TwoByteNumbers {
    static __device__ __forceinline__ void unpack(const Raw& raw, float (&v)[8]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v[2 * i] = __int_as_float((int)(raw.word[i] << 16));
            v[2 * i + 1] = __int_as_float((int)(raw.word[i] & 0xffff0000u));
        }
    }
};

struct F32 : PlainNumbers {
    static constexpr int BYTES = 4;
    struct Raw {
        unsigned word[8];
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* row, int unit, int k) {
        const uint8_t* p = row + 32 * (long long)unit;
        if (k % 8 == 0) {
            uint4 a = load_weight<uint4>(p), b = load_weight<uint4>(p + 16);
            raw.word[0] = a.x, raw.word[1] = a.y, raw.word[2] = a.z, raw.word[3] = a.w;
            raw.word[4] = b.x, raw.word[5] = b.y, raw.word[6] = b.z, raw.word[7] = b.w;
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; i++) raw.word[i] = 8 * unit + i < k ? load_weight<unsigned>(p + 4 * i) : 0u;
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, float (&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = __int_as_float((int)raw.word[i]);
    }
};

// Eight neighbouring float32 activations, zeros past the end of the row.
__device__ __forceinline__ void load_activations(float (&v)[8], const void* row, int unit, int k) {
    const float* p = (const float*)row + 8 * unit;
    if (k % 8 == 0) {
        float4 a = *(const float4*)p, b = *(const float4*)(p + 4);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = 8 * unit + i < k ? p[i] : 0.0f;
}

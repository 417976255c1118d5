// The 32-element block formats. A unit of work is a whole block: two pieces of 16 neighbouring elements under one scale.
//
//   Q4_0   |  0 d: float16 |  2 qs: 16 bytes | 18 end          x = d * (q - 8)
//   Q4_1   |  0 d: float16 |  2 m: float16 |  4 qs | 20 end    x = d * q + m
//   Q5_0   |  0 d: float16 |  2 qh: 4 bytes |  6 qs | 22 end   x = d * (q - 16)
//   Q5_1   |  0 d | 2 m | 4 qh | 8 qs | 24 end                 x = d * q + m
//   Q8_0   |  0 d: float16 |  2 qs: 32 int8 | 34 end           x = q * d
//
// qs: elements 0..15 in the low nibbles, 16..31 in the high; qh: the fifth bit of element i is bit i.
// What unpack() gives is explained in formats.cuh. Signed quants are left in the top bits of their bytes, where the offset
// is one flipped bit; the scale is divided by the same power of two, which is exact.
#pragma once
#include "loads.cuh"

struct BlockOf32 {
    static constexpr bool FLOAT = false, HALVES = false;
    static constexpr int BLOCK = 32, UNITS = 1, PIECES = 2, STEP = 16;
    static __device__ __forceinline__ int first(int) { return 0; }
};

struct Q4_0 : BlockOf32 {
    static constexpr bool MINIMA = false;
    static constexpr int BYTES = 18;
    typedef HalfAndWords<4> Raw;
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int) { raw.load(block); }
    static __device__ __forceinline__ void unpack(const Raw& raw, int, int (&q)[2][4], float (&scale)[2], float (&)[2]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned v = raw.at(i);
            q[0][i] = (int)(((v << 4) ^ 0x80808080u) & 0xf0f0f0f0u);  // 16 * (q - 8)
            q[1][i] = (int)((v ^ 0x80808080u) & 0xf0f0f0f0u);
        }
        scale[0] = scale[1] = raw.scale() * 0.0625f;
    }
};

struct Q4_1 : BlockOf32 {
    static constexpr bool MINIMA = true;
    static constexpr int BYTES = 20;
    struct Raw {
        unsigned word[5];
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int) {
#pragma unroll
        for (int i = 0; i < 5; i++) raw.word[i] = load_weight<unsigned>(block + 4 * i);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int, int (&q)[2][4], float (&scale)[2], float (&minimum)[2]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            q[0][i] = (int)(raw.word[1 + i] & 0x0f0f0f0fu);
            q[1][i] = (int)((raw.word[1 + i] >> 4) & 0x0f0f0f0fu);
        }
        scale[0] = scale[1] = low_half(raw.word[0]);
        minimum[0] = minimum[1] = -high_half(raw.word[0]);
    }
};

struct Q5_0 : BlockOf32 {
    static constexpr bool MINIMA = false;
    static constexpr int BYTES = 22;
    typedef HalfAndWords<5> Raw;
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int) { raw.load(block); }
    static __device__ __forceinline__ void unpack(const Raw& raw, int, int (&q)[2][4], float (&scale)[2], float (&)[2]) {
        unsigned fifth = ~raw.at(0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned v = raw.at(1 + i);
            q[0][i] = (int)(((v << 3) & 0x78787878u) | four_top_bits(fifth >> 4 * i));  // 8 * (q - 16)
            q[1][i] = (int)(((v >> 1) & 0x78787878u) | four_top_bits(fifth >> (16 + 4 * i)));
        }
        scale[0] = scale[1] = raw.scale() * 0.125f;
    }
};

struct Q5_1 : BlockOf32 {
    static constexpr bool MINIMA = true;
    static constexpr int BYTES = 24;
    struct Raw {
        uint2 pair[3];
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int) {
#pragma unroll
        for (int i = 0; i < 3; i++) raw.pair[i] = load_weight<uint2>(block + 8 * i);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int, int (&q)[2][4], float (&scale)[2], float (&minimum)[2]) {
        unsigned fifth = raw.pair[0].y, v[4] = {raw.pair[1].x, raw.pair[1].y, raw.pair[2].x, raw.pair[2].y};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            q[0][i] = (int)((v[i] & 0x0f0f0f0fu) | four_fifth_bits(fifth >> 4 * i));
            q[1][i] = (int)(((v[i] >> 4) & 0x0f0f0f0fu) | four_fifth_bits(fifth >> (16 + 4 * i)));
        }
        scale[0] = scale[1] = low_half(raw.pair[0].x);
        minimum[0] = minimum[1] = -high_half(raw.pair[0].x);
    }
};

struct Q8_0 : BlockOf32 {
    static constexpr bool MINIMA = false;
    static constexpr int BYTES = 34;
    typedef HalfAndWords<8> Raw;
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int) { raw.load(block); }
    static __device__ __forceinline__ void unpack(const Raw& raw, int, int (&q)[2][4], float (&scale)[2], float (&)[2]) {
#pragma unroll
        for (int i = 0; i < 8; i++) q[i / 4][i % 4] = (int)raw.at(i);
        scale[0] = scale[1] = raw.scale();
    }
};

// The non-linear 4-bit formats: nibbles are indices of 16 levels. A unit of work is 32 elements, two pieces of 16 under one scale.
//
//   IQ4_NL |  0 d: float16 |  2 qs: 16 bytes | 18 end                                          x = d * LEVELS[q]
//   IQ4_XS |  0 d: float16 |  2 scales_h: 2 bytes |  4 scales_l: 4 bytes |  8 qs: 128 bytes | 136 end
//                                                                                              x = (d * (s - 32)) * LEVELS[q]
// qs: of each 16 bytes, elements 0..15 in the low nibbles, 16..31 in the high. Scale j: low nibble in nibble j of scales_l, two
// high bits in bits 2j, 2j + 1 of scales_h.
#pragma once
#include "legacy.cuh"

// Eight nibbles -> the levels of the low nibbles of the four bytes, and of the high ones.
// LEVELS = -127 -104 -83 -65 | -49 -35 -22 -10 | 1 13 25 38 | 53 69 89 113, lowest byte first.
__device__ __forceinline__ void levels(unsigned v, int& low, int& high) {
    unsigned index = v & 0x77777777u;                              // place among the eight negative or the eight positive levels
    unsigned side = 0x32103210u | ((v & 0x88888888u) >> 1);        // which of the two
    unsigned pair[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        unsigned negative = __byte_perm(0xbfad9881u, 0xf6eaddcfu, index >> 16 * i);
        unsigned positive = __byte_perm(0x26190d01u, 0x71594535u, index >> 16 * i);
        pair[i] = __byte_perm(negative, positive, side >> 16 * i);
    }
    low = (int)__byte_perm(pair[0], pair[1], 0x6420);
    high = (int)__byte_perm(pair[0], pair[1], 0x7531);
}

struct IQ4_NL : BlockOf32 {
    static constexpr bool MINIMA = false;
    static constexpr int BYTES = 18;
    typedef HalfAndWords<4> Raw;
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int) { raw.load(block); }
    static __device__ __forceinline__ void unpack(const Raw& raw, int, int (&q)[2][4], float (&scale)[2], float (&)[2]) {
#pragma unroll
        for (int i = 0; i < 4; i++) levels(raw.at(i), q[0][i], q[1][i]);
        scale[0] = scale[1] = raw.scale();
    }
};

struct IQ4_XS {
    static constexpr bool FLOAT = false, HALVES = false, MINIMA = false;
    static constexpr int BLOCK = 256, BYTES = 136, UNITS = 8, PIECES = 2, STEP = 16;
    struct Raw {
        uint2 head, qs[2];
    };
    static __device__ __forceinline__ int first(int unit) { return 32 * unit; }
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int unit) {
#pragma unroll
        for (int i = 0; i < 2; i++) raw.qs[i] = load_weight<uint2>(block + 8 + 16 * unit + 8 * i);
        raw.head = load_weight<uint2>(block, unit == 0);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int unit, int (&q)[2][4], float (&scale)[2], float (&)[2]) {
        unsigned v[4] = {raw.qs[0].x, raw.qs[0].y, raw.qs[1].x, raw.qs[1].y};
#pragma unroll
        for (int i = 0; i < 4; i++) levels(v[i], q[0][i], q[1][i]);
        unsigned s = ((raw.head.y >> 4 * unit) & 15u) | (((raw.head.x >> (16 + 2 * unit)) & 3u) << 4);
        scale[0] = scale[1] = low_half(raw.head.x) * (float)((int)s - 32);
    }
};

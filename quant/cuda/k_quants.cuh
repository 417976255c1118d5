// The 256-element super-block formats. Fields lie in planes (docs/formats.md); a unit of work takes 16 neighbouring bytes of
// every plane of quants, so that all bits of a byte serve one lane: u = 2 * plane + h for bytes 16 * h of a 32-byte plane.
//
//   Q2_K  |  0 scales: 16 bytes | 16 qs: 64 bytes | 80 d: float16 | 82 dmin: float16 | 84 end
//   Q3_K  |  0 hmask: 32 bytes | 32 qs: 64 bytes | 96 scales: 12 bytes |108 d: float16 | 110 end
//   Q4_K  |  0 d: float16 |  2 dmin: float16 |  4 scales: 12 bytes | 16 qs: 128 bytes | 144 end
//   Q5_K  |  0 d: float16 |  2 dmin: float16 |  4 scales: 12 bytes | 16 qh: 32 bytes | 48 qs: 128 bytes | 176 end
//   Q6_K  |  0 ql: 128 bytes |128 qh: 64 bytes |192 scales: 16 int8 |208 d: float16 | 210 end
//
// What unpack() gives is explained in formats.cuh.
#pragma once
#include "loads.cuh"

// --- one scale for 32 elements: Q4_K, Q5_K ---

struct NibblePlanes {
    static constexpr bool FLOAT = false, HALVES = false, MINIMA = true;
    static constexpr int BLOCK = 256, UNITS = 8, PIECES = 2, STEP = 32;
    static __device__ __forceinline__ int first(int unit) { return 64 * (unit >> 1) + 16 * (unit & 1); }

    // Scales and minima of sub-blocks 2j and 2j + 1, from a block's first 16 bytes:
    //   byte 4 + j   [ s(j+4) bits 5,4 | s(j) bits 5..0 ]        j = 0..3
    //   byte 8 + j   [ m(j+4) bits 5,4 | m(j) bits 5..0 ]
    //   byte 12 + j  [ m(j+4) bits 3..0 | s(j+4) bits 3..0 ]
    static __device__ __forceinline__ void scales(uint4 head, int j, float (&scale)[2], float (&minimum)[2]) {
        int shift = 16 * (j & 1);
        unsigned a = head.y >> shift, b = head.z >> shift, c = head.w >> shift;
        unsigned s = j < 2 ? a & 0x3f3fu : (c & 0x0f0fu) | ((a >> 2) & 0x3030u);
        unsigned m = j < 2 ? b & 0x3f3fu : ((c >> 4) & 0x0f0fu) | ((b >> 2) & 0x3030u);
        float d = low_half(head.x), dmin = high_half(head.x);
        scale[0] = d * (float)(s & 255u);
        scale[1] = d * (float)(s >> 8);
        minimum[0] = dmin * (float)(m & 255u);
        minimum[1] = dmin * (float)(m >> 8);
    }
};

struct Q4_K : NibblePlanes {
    static constexpr int BYTES = 144;
    struct Raw {
        uint4 head, qs;
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int unit) {
        raw.qs = load_weight<uint4>(block + 16 + 16 * unit);
        raw.head = load_weight<uint4>(block, unit == 0);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int unit, int (&q)[2][4], float (&scale)[2], float (&minimum)[2]) {
        unsigned v[4] = {raw.qs.x, raw.qs.y, raw.qs.z, raw.qs.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            q[0][i] = (int)(v[i] & 0x0f0f0f0fu);
            q[1][i] = (int)((v[i] >> 4) & 0x0f0f0f0fu);
        }
        scales(raw.head, unit >> 1, scale, minimum);
    }
};

struct Q5_K : NibblePlanes {
    static constexpr int BYTES = 176;
    struct Raw {
        uint4 head, qh, qs;
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int unit) {
        raw.qs = load_weight<uint4>(block + 48 + 16 * unit);
        raw.qh = load_weight<uint4>(block + 16 + 16 * (unit & 1), unit < 2);
        raw.head = load_weight<uint4>(block, unit == 0);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int unit, int (&q)[2][4], float (&scale)[2], float (&minimum)[2]) {
        unsigned v[4] = {raw.qs.x, raw.qs.y, raw.qs.z, raw.qs.w}, h[4] = {raw.qh.x, raw.qh.y, raw.qh.z, raw.qh.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {  // sub-block j has its fifth bits in bit j of qh
            unsigned fifth = h[i] >> (unit & ~1);
            q[0][i] = (int)((v[i] & 0x0f0f0f0fu) | ((fifth << 4) & 0x10101010u));
            q[1][i] = (int)(((v[i] >> 4) & 0x0f0f0f0fu) | ((fifth << 3) & 0x10101010u));
        }
        scales(raw.head, unit >> 1, scale, minimum);
    }
};

// --- one scale for 16 elements: Q2_K, Q3_K, Q6_K ---
// Unit u: bytes 16 * (u & 1) of the planes of elements 128 * n ... 128 * n + 127, n = u >> 1; piece p begins 32 * p further and
// its sub-block is 8 * n + 2 * p + (u & 1).

struct HalfPlanes {
    static constexpr bool FLOAT = false, HALVES = true;
    static constexpr int BLOCK = 256, UNITS = 4, PIECES = 4, STEP = 32;
    static __device__ __forceinline__ int first(int unit) { return 128 * (unit >> 1) + 16 * (unit & 1); }
};

struct Q2_K : HalfPlanes {
    static constexpr bool MINIMA = true;
    static constexpr int BYTES = 84;
    struct Raw {
        unsigned qs[4], scales[2], d;
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int unit) {
#pragma unroll
        for (int i = 0; i < 4; i++) raw.qs[i] = load_weight<unsigned>(block + 16 + 16 * unit + 4 * i);
#pragma unroll
        for (int i = 0; i < 2; i++) raw.scales[i] = load_weight<unsigned>(block + 8 * (unit >> 1) + 4 * i, (unit & 1) == 0);
        raw.d = load_weight<unsigned>(block + 80, unit == 0);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int unit, int (&q)[4][4], float (&scale)[4], float (&minimum)[4]) {
        float d = low_half(raw.d), dmin = high_half(raw.d);
#pragma unroll
        for (int p = 0; p < 4; p++) {
#pragma unroll
            for (int i = 0; i < 4; i++) q[p][i] = (int)((raw.qs[i] >> 2 * p) & 0x03030303u);
            unsigned s = raw.scales[p >> 1] >> (16 * (p & 1) + 8 * (unit & 1));
            scale[p] = d * (float)(s & 15u);
            minimum[p] = dmin * (float)((s >> 4) & 15u);
        }
    }
};

struct Q3_K : HalfPlanes {
    static constexpr bool MINIMA = false;
    static constexpr int BYTES = 110;
    struct Raw {
        Span<4> qs, hmask;
        Span<3> scales;
        unsigned d;
        int shift;
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int unit) {
        raw.qs.load(block + 32 + 16 * unit);
        raw.hmask.load(block + 16 * (unit & 1), unit < 2);
        raw.scales.load(block + 96, unit == 0);
        raw.d = load_weight<unsigned short>(block + 108, unit == 0);
        raw.shift = 8 * is_odd_word(block);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int unit, int (&q)[4][4], float (&scale)[4], float (&)[4]) {
        int n = unit >> 1, h = unit & 1;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned v = raw.qs.at(i, raw.shift), third = ~raw.hmask.at(i, raw.shift) >> 4 * n;  // sub-block of 32 number j: bit j
#pragma unroll
            for (int p = 0; p < 4; p++)  // 32 * (q - 4)
                q[p][i] = (int)(((p < 3 ? v << (5 - 2 * p) : v >> 1) & 0x60606060u) | ((third << (7 - p)) & 0x80808080u));
        }
        // low nibbles of scale s in byte s % 8, high two bits in byte 8 + s % 4, bits 2 * (s / 4); s = 8 * n + 2 * p + h
        unsigned top = raw.scales.at(2, raw.shift) >> (8 * h + 4 * n);
        float d = low_half(raw.d) * 0.03125f;
#pragma unroll
        for (int p = 0; p < 4; p++) {
            unsigned low = raw.scales.at(p >> 1, raw.shift) >> (16 * (p & 1) + 8 * h + 4 * n);
            unsigned high = top >> (16 * (p & 1) + 2 * (p >> 1));
            scale[p] = d * (float)((int)((low & 15u) | ((high & 3u) << 4)) - 32);
        }
    }
};

struct Q6_K : HalfPlanes {
    static constexpr bool MINIMA = false;
    static constexpr int BYTES = 210;
    struct Raw {
        Span<4> low, low_next, qh;
        Span<2> scales;
        unsigned d;
        int shift;
    };
    static __device__ __forceinline__ void load(Raw& raw, const uint8_t* block, int unit) {
        int n = unit >> 1, h = unit & 1;
        raw.low.load(block + 64 * n + 16 * h);
        raw.low_next.load(block + 64 * n + 32 + 16 * h);
        raw.qh.load(block + 128 + 32 * n + 16 * h);
        raw.scales.load(block + 192 + 8 * n, h == 0);
        raw.d = load_weight<unsigned short>(block + 208, unit == 0);
        raw.shift = 8 * is_odd_word(block);
    }
    static __device__ __forceinline__ void unpack(const Raw& raw, int unit, int (&q)[4][4], float (&scale)[4], float (&)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {  // 4 * (q - 32)
            unsigned a = raw.low.at(i, raw.shift), b = raw.low_next.at(i, raw.shift);
            unsigned top = raw.qh.at(i, raw.shift) ^ 0xaaaaaaaau;  // the highest bit of each pair flipped
            q[0][i] = (int)(((a << 2) & 0x3c3c3c3cu) | ((top << 6) & 0xc0c0c0c0u));
            q[1][i] = (int)(((b << 2) & 0x3c3c3c3cu) | ((top << 4) & 0xc0c0c0c0u));
            q[2][i] = (int)(((a >> 2) & 0x3c3c3c3cu) | ((top << 2) & 0xc0c0c0c0u));
            q[3][i] = (int)(((b >> 2) & 0x3c3c3c3cu) | (top & 0xc0c0c0c0u));
        }
        float d = low_half(raw.d) * 0.25f;
#pragma unroll
        for (int p = 0; p < 4; p++)
            scale[p] = d * (float)(signed char)(raw.scales.at(p >> 1, raw.shift) >> (16 * (p & 1) + 8 * (unit & 1)));
    }
};

// How a warp reads a KV block of 32 tokens straight from the cache into the operands of mma.m16n8k16, without shared memory.
//
// The products are transposed: tokens (for K) or dimensions (for V) are the 16 rows of A, query heads the 8 columns of B and C. In a warp,
// lane = 4 * g + t. A's registers: (row g, k 2t 2t+1), (row g + 8, the same), (row g, k 2t+8 2t+9), (row g + 8, the same).
//
// K: rows are tokens, k are dimensions. The order of k is free, as long as the queries use the same: a lane reads neighbours of a token,
//    `dim(step, t)` is the first of its four in a step of 16. All lanes of a load together read whole 32-byte sectors (q4_0: half ones,
//    whose other half the next load finds in the first-level cache).
// V: rows are dimensions, k are tokens: those of lane t are 2t, 2t+1, 2t+8, 2t+9. The order of rows is free: a lane reads neighbouring
//    dimensions of its four tokens and interleaves tokens two by two; `dim(tile, g)` is where row g of a tile lies, row g + 8 one further.
#pragma once
#include "attention.cuh"

namespace attention {

template <int N>
struct Words;  // N bytes as loaded at once
template <>
struct Words<16> {
    using Type = uint4;
};
template <>
struct Words<8> {
    using Type = uint2;
};
template <>
struct Words<4> {
    using Type = unsigned;
};
template <>
struct Words<2> {
    using Type = unsigned short;
};

// N bytes from the cache, which no kernel writes while this one runs; words[] gets them
template <int N>
__device__ __forceinline__ void fetch(unsigned* words, const char* from) {
    using T = typename Words<N>::Type;
    const T v = __ldg((const T*)from);
    if constexpr (N == 16) {
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else if constexpr (N == 8) {
        words[0] = v.x, words[1] = v.y;
    } else {
        words[0] = v;
    }
}

__device__ __forceinline__ float scale_at(const char* scales, int i) { return __half2float(__ldg((const __half*)scales + i)); }

// A lane's part of a step's queries: the high halves in x, y; with LOW the low ones in z, w
template <bool LOW>
struct Query {
    using Type = uint2;
};
template <>
struct Query<true> {
    using Type = uint4;
};

__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&rows)[4], uint2 query) {
    mma_f16_m16n8k16(sums, rows, &query.x);
}

__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&rows)[4], uint4 query) {
    const unsigned high[2] = {query.x, query.y}, low[2] = {query.z, query.w};
    mma_f16_m16n8k16(sums, rows, high);
    mma_f16_m16n8k16(sums, rows, low);
}

// sums[i] += K * queries over all dimensions, for tokens 16i..16i+15 of the block. queries, in shared memory: [step][tile of 8 heads][lane]
template <int DIM, int TILES, class Q>
struct KeysF16 {
    static constexpr int STEPS = DIM / 16;

    static __device__ __forceinline__ int dim(int step, int t) {
        return step / 2 * 32 + (step / 2 < DIM / 32 ? 8 * t + step % 2 * 4 : 4 * t);
    }

    // N bytes of the lane's four tokens, which are N / 8 steps
    template <int N>
    static __device__ __forceinline__ void piece(float (&sums)[2][TILES][4], const char* from, const Q* queries) {
        unsigned k[4][N / 4];
#pragma unroll
        for (int i = 0; i < 4; i++) fetch<N>(k[i], from + 8 * i * DIM * 2);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                const Q query = queries[(j * TILES + n) * 32];
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const unsigned rows[4] = {k[2 * i][2 * j], k[2 * i + 1][2 * j], k[2 * i][2 * j + 1], k[2 * i + 1][2 * j + 1]};
                    multiply_add(sums[i][n], rows, query);
                }
            }
        }
    }

    static __device__ __forceinline__ void multiply(float (&sums)[2][TILES][4], const char* part, int g, int t, const Q* queries) {
        const char* own = part + g * DIM * 2;
#pragma unroll
        for (int c = 0; c < DIM / 32; c++) piece<16>(sums, own + 64 * c + 16 * t, queries + 2 * c * TILES * 32);
        if constexpr (DIM % 32 != 0) piece<8>(sums, own + DIM / 32 * 64 + 8 * t, queries + (STEPS - 1) * TILES * 32);
    }
};

// Quants are multiplied as whole numbers, which halves hold exactly; the products of 32 dimensions are scaled in float32.
template <int DIM, int TILES, int BITS, class Q>
struct KeysQuantized {
    static constexpr int STEPS = DIM / 16;

    static __device__ __forceinline__ int dim(int step, int t) {
        return step / 2 * 32 + (BITS == 8 ? 8 * t + step % 2 * 4 : 4 * t + step % 2 * 16);
    }

    // words: the lane's 8 quants of 32 dimensions; gives the four of a step in two registers
    static __device__ __forceinline__ void widen(const unsigned* words, int step, unsigned& near, unsigned& far) {
        const unsigned w = BITS == 8 ? words[step % (BITS / 4)] ^ 0x80808080u : words[0] >> 4 * step & 0x0F0F0F0Fu;
        near = bits(two_halves(w, LOW, BITS == 8 ? ZERO_8 : ZERO_4));
        far = bits(two_halves(w, HIGH, BITS == 8 ? ZERO_8 : ZERO_4));
    }

    static __device__ __forceinline__ void multiply(float (&sums)[2][TILES][4], const char* part, int g, int t, const Q* queries) {
        constexpr int ROW = DIM * BITS / 8;
        const char* own = part + g * ROW + t * BITS;
        const char* scales = part + 32 * ROW;
#pragma unroll
        for (int c = 0; c < DIM / 32; c++) {
            unsigned k[4][BITS / 4];
            float d[4], products[2][TILES][4] = {};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                fetch<BITS>(k[i], own + 8 * i * ROW + c * 4 * BITS);
                d[i] = scale_at(scales, (g + 8 * i) * (DIM / 32) + c);
            }
#pragma unroll
            for (int j = 0; j < 2; j++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    unsigned rows[4];
                    widen(k[2 * i], j, rows[0], rows[2]);
                    widen(k[2 * i + 1], j, rows[1], rows[3]);
#pragma unroll
                    for (int n = 0; n < TILES; n++) multiply_add(products[i][n], rows, queries[((2 * c + j) * TILES + n) * 32]);
                }
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int n = 0; n < TILES; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) sums[i][n][e] += d[2 * i + e / 2] * products[i][n][e];
                }
            }
        }
    }
};

// outputs[tile] += V * weights for the 16 tokens from `first` on. weights: [tile of 8 heads][2]; seen: bit i says that the lane's i-th
// token counts. Cells that do not count may hold anything, NaN included, and become 0 on the way.
template <int DIM, int TILES>
struct ValuesF16 {
    static constexpr int ROWS = DIM / 16;  // tiles of 16 dimensions

    static __device__ __forceinline__ int dim(int tile, int g) {
        const int c = tile / 4, e = tile % 4;
        return c < DIM / 64 ? 64 * c + 8 * g + 2 * e : (e < 2 && DIM % 64 >= 32) ? 64 * c + 4 * g + 2 * e : DIM - 16 + 2 * g;
    }

    // N bytes of each of the lane's four tokens, from the tile `tile` on
    template <int N>
    static __device__ __forceinline__ void piece(float (&outputs)[ROWS][TILES][4], int tile, const char* const (&tokens)[4], int offset,
                                                 const unsigned (&weights)[TILES][2], int seen) {
        unsigned v[4][N / 4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (seen >> i & 1) {
                fetch<N>(v[i], tokens[i] + offset);
            } else {
#pragma unroll
                for (int e = 0; e < N / 4; e++) v[i][e] = 0;
            }
        }
#pragma unroll
        for (int e = 0; e < N / 4; e++) {
            const unsigned rows[4] = {__byte_perm(v[0][e], v[1][e], 0x5410), __byte_perm(v[0][e], v[1][e], 0x7632),
                                      __byte_perm(v[2][e], v[3][e], 0x5410), __byte_perm(v[2][e], v[3][e], 0x7632)};
#pragma unroll
            for (int n = 0; n < TILES; n++) mma_f16_m16n8k16(outputs[tile + e][n], rows, weights[n]);
        }
    }

    static __device__ __forceinline__ void multiply(float (&outputs)[ROWS][TILES][4], const char* part, int first, int g, int t,
                                                    const unsigned (&weights)[TILES][2], int seen) {
        const char* own = part + (first + 2 * t) * (DIM * 2);
        const char* const tokens[4] = {own, own + DIM * 2, own + 8 * DIM * 2, own + 9 * DIM * 2};
#pragma unroll
        for (int c = 0; c < DIM / 64; c++) piece<16>(outputs, 4 * c, tokens, 128 * c + 16 * g, weights, seen);
        if constexpr (DIM % 64 >= 32) piece<8>(outputs, DIM / 64 * 4, tokens, DIM / 64 * 128 + 8 * g, weights, seen);
        if constexpr (DIM % 32 != 0) piece<4>(outputs, ROWS - 1, tokens, DIM * 2 - 32 + 4 * g, weights, seen);
    }
};

// A value is widened to half(d * q): one rounding, as if the cache were f16.
template <int DIM, int TILES, int BITS>
struct ValuesQuantized {
    static constexpr int ROWS = DIM / 16;
    static constexpr int ROW = DIM * BITS / 8;

    static __device__ __forceinline__ int dim(int tile, int g) {
        const int c = tile / 4, e = tile % 4;
        if (c < DIM / 64) return BITS == 8 ? 64 * c + 8 * g + 2 * e : 64 * c + 32 * (g / 4) + 4 * (g % 4) + 2 * (e % 2) + 16 * (e / 2);
        return BITS == 8 ? 64 * c + 4 * g + 2 * e : 64 * c + 2 * g + 16 * e;
    }

    // a, b: four quants of two tokens each, as bytes; near, far: tile rows of the first and the second pair of dimensions
    static __device__ __forceinline__ void widen(unsigned a, unsigned b, __half2 d, unsigned* near, unsigned* far) {
        const unsigned one = __byte_perm(a, b, 0x5140), two = __byte_perm(a, b, 0x7362), zero = BITS == 8 ? ZERO_8 : ZERO_4;
        near[0] = bits(__hmul2(two_halves(one, LOW, zero), d)), near[1] = bits(__hmul2(two_halves(one, HIGH, zero), d));
        far[0] = bits(__hmul2(two_halves(two, LOW, zero), d)), far[1] = bits(__hmul2(two_halves(two, HIGH, zero), d));
    }

    // N quants of each of the lane's four tokens, 8 or 4, from the tile `tile` on; d: scales of tokens 0 1 and 2 3
    template <int N>
    static __device__ __forceinline__ void piece(float (&outputs)[ROWS][TILES][4], int tile, const char* from, const __half2 (&d)[2],
                                                 const unsigned (&weights)[TILES][2]) {
        constexpr int BYTES = N * BITS / 8;
        unsigned v[4][2], rows[4][4];  // rows: [tile][register]
        fetch<BYTES>(v[0], from);
        fetch<BYTES>(v[1], from + ROW);
        fetch<BYTES>(v[2], from + 8 * ROW);
        fetch<BYTES>(v[3], from + 9 * ROW);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (BITS == 8) {
                v[i][0] ^= 0x80808080u;
                if constexpr (N == 8) v[i][1] ^= 0x80808080u;
            } else if constexpr (N == 8) {
                v[i][1] = v[i][0] >> 4 & 0x0F0F0F0Fu;
                v[i][0] &= 0x0F0F0F0Fu;
            } else {  // two bytes: their low nibbles, then their high ones
                v[i][0] = (v[i][0] | v[i][0] << 12) & 0x0F0F0F0Fu;
            }
        }
#pragma unroll
        for (int w = 0; w < N / 4; w++) {
#pragma unroll
            for (int side = 0; side < 2; side++)
                widen(v[2 * side][w], v[2 * side + 1][w], d[side], rows[2 * w] + 2 * side, rows[2 * w + 1] + 2 * side);
        }
#pragma unroll
        for (int e = 0; e < N / 2; e++) {
#pragma unroll
            for (int n = 0; n < TILES; n++) mma_f16_m16n8k16(outputs[tile + e][n], rows[e], weights[n]);
        }
    }

    static __device__ __forceinline__ void multiply(float (&outputs)[ROWS][TILES][4], const char* part, int first, int g, int t,
                                                    const unsigned (&weights)[TILES][2], int seen) {
        constexpr int CHUNKS = DIM / 32;
        const char* own = part + (first + 2 * t) * ROW;
        const __half* scales = (const __half*)(part + 32 * ROW) + (first + 2 * t) * CHUNKS;
        const __half nothing = __float2half_rn(0.0f);
        const auto pair = [&](int chunk, int i, int token) {  // scales of the lane's tokens i and i + 1
            return __halves2half2(seen >> i & 1 ? __ldg(scales + token * CHUNKS + chunk) : nothing,
                                  seen >> (i + 1) & 1 ? __ldg(scales + (token + 1) * CHUNKS + chunk) : nothing);
        };
#pragma unroll
        for (int c = 0; c < DIM / 64; c++) {
            const __half2 d[2] = {pair(2 * c + g / 4, 0, 0), pair(2 * c + g / 4, 2, 8)};
            piece<8>(outputs, 4 * c, own + c * 8 * BITS + g * BITS, d, weights);
        }
        if constexpr (DIM % 64 != 0) {
            const __half2 d[2] = {pair(CHUNKS - 1, 0, 0), pair(CHUNKS - 1, 2, 8)};
            piece<4>(outputs, DIM / 64 * 4, own + DIM / 64 * 8 * BITS + g * (BITS / 2), d, weights);
        }
    }
};

// The readers of a cache type
template <class T, int DIM, int TILES, class Q>
struct Fragments;
template <int DIM, int TILES, class Q>
struct Fragments<kv::F16, DIM, TILES, Q> {
    using Keys = KeysF16<DIM, TILES, Q>;
    using Values = ValuesF16<DIM, TILES>;
};
template <int DIM, int TILES, class Q>
struct Fragments<kv::Q8_0, DIM, TILES, Q> {
    using Keys = KeysQuantized<DIM, TILES, 8, Q>;
    using Values = ValuesQuantized<DIM, TILES, 8>;
};
template <int DIM, int TILES, class Q>
struct Fragments<kv::Q4_0, DIM, TILES, Q> {
    using Keys = KeysQuantized<DIM, TILES, 4, Q>;
    using Values = ValuesQuantized<DIM, TILES, 4>;
};

}  // namespace attention

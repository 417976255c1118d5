// Reading weight bytes at the alignment that blocks have, and the small bit tricks the formats share.
//
// Every byte of a weight is read through load_weight(address, counted): `counted` is false for bytes that a neighbouring lane of
// the same warp reads at the same time and counts (scales of a block): memory sends them once, the rest comes from L1.
// Tensors begin 256-byte aligned; a row of blocks of 2 bytes more than a multiple of 4 (Q4_0, Q5_0, Q8_0, Q3_K, Q6_K, IQ4_NL)
// has its blocks alternately on addresses 0 and 2 modulo 4.
#pragma once
#include "primitives.cuh"

template <class T>
__device__ __forceinline__ T load_weight(const void* p, bool counted = true) {
#ifdef GGRUN_EMULATION
    if (!counted) return __ldg((const T*)p);
#endif
    if constexpr (sizeof(T) == 2) return (T)load_u16(p);
    else if constexpr (sizeof(T) == 4) return (T)load_u32(p);
    else if constexpr (sizeof(T) == 8) return load_u32x2(p);
    else return load_u32x4(p);
}

__device__ __forceinline__ float half_to_float(unsigned short v) { return __half2float(__ushort_as_half(v)); }

__device__ __forceinline__ int is_odd_word(const uint8_t* p) { return (int)((unsigned long long)p & 2); }  // 2: in the middle of a word

// 4 * N bytes at an even address, as N aligned words and, when they begin in the middle of a word, the half word after them.
template <int N>
struct Span {
    unsigned word[N], tail;

    __device__ __forceinline__ void load(const uint8_t* p, bool counted = true) {
        const uint8_t* base = p - is_odd_word(p);
#pragma unroll
        for (int i = 0; i < N; i++) word[i] = load_weight<unsigned>(base + 4 * i, counted);
        tail = is_odd_word(p) ? load_weight<unsigned short>(base + 4 * N, false) : 0;
    }
    // shift: 16 where the span begins in the middle of a word, else 0
    __device__ __forceinline__ unsigned at(int i, int shift) const {
        return __funnelshift_r(word[i], i + 1 < N ? word[i + 1] : tail, shift);
    }
};

// A block of a float16 and N words after it, exactly its 4 * N + 2 bytes, at an even address.
template <int N>
struct HalfAndWords {
    unsigned word[N], half;
    int shift;

    __device__ __forceinline__ void load(const uint8_t* block) {
        int odd = is_odd_word(block);
        shift = odd ? 0 : 16;
        const uint8_t* base = block + odd;
#pragma unroll
        for (int i = 0; i < N; i++) word[i] = load_weight<unsigned>(base + 4 * i);
        half = load_weight<unsigned short>(odd ? block : block + 4 * N);
    }
    __device__ __forceinline__ unsigned at(int i) const { return __funnelshift_r(word[i], i + 1 < N ? word[i + 1] : half, shift); }
    __device__ __forceinline__ float scale() const { return half_to_float((unsigned short)(shift ? word[0] : half)); }
};

__device__ __forceinline__ float low_half(unsigned v) { return half_to_float((unsigned short)v); }
__device__ __forceinline__ float high_half(unsigned v) { return half_to_float((unsigned short)(v >> 16)); }

// The lowest four bits of `bits`, one in the top bit of each byte.
__device__ __forceinline__ unsigned four_top_bits(unsigned bits) { return ((bits & 15u) * 0x10204080u) & 0x80808080u; }
// The same in bit 4 of each byte.
__device__ __forceinline__ unsigned four_fifth_bits(unsigned bits) { return ((bits & 15u) * 0x02040810u) & 0x10101010u; }

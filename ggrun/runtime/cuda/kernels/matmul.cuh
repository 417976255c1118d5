// The kernels for many tokens: plain matrices and experts.
//
// Lists of the slots of each expert (group_experts), int32: | starts [n_expert + 1] | slots [n_slots] |: the slots of expert e, in rising
// order, are slots[starts[e]] ... slots[starts[e + 1] - 1]. A slot is token * n_used + place.
#pragma once
#include "gemm.cuh"
#include "gemm_float.cuh"

// Columns of a tile that are neighbouring rows; those past the last read the last.
struct Neighbours {
    int first, count;
    __device__ __forceinline__ int x_row(int i) const { return first + min(i, count - 1); }
    __device__ __forceinline__ int y_row(int i) const { return first + i; }
};

// Columns that are slots; slots_per_row of them share a row of activations.
struct Slots {
    const int* slot;
    int count, slots_per_row;
    __device__ __forceinline__ int x_row(int i) const { return slot[min(i, count - 1)] / slots_per_row; }
    __device__ __forceinline__ int y_row(int i) const { return slot[i]; }
};

template <class F, int N, class Columns>
__device__ __forceinline__ void any_tile(const uint8_t* w, long long row_bytes, const char* x, float* y, const float* bias, int k, int n_out,
                                         const Columns& columns) {
    if constexpr (F::FLOAT)
        gemm_float_tile<F>(w, row_bytes, x, y, bias, k, n_out, (int)blockIdx.y * FLOAT_TILE, columns);
    else
        gemm_tile<F, N>(w, row_bytes, x, y, bias, k, n_out, (int)blockIdx.y * TILE_ROWS, columns);
}

// Grid: x = tiles of tokens, y = tiles of rows: blocks that run together share weights through the L2 cache.
#define KERNEL_gemm(F, N)                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256, (N > 64 ? 1 : 2))                                                                \
        gemm__##F##__##N(const uint8_t* w, long long row_bytes, const char* x, float* y, const float* bias, int k, int n_out,          \
                         int n_tokens) {                                                                                               \
        Neighbours columns{(int)blockIdx.x * N, min(N, n_tokens - (int)blockIdx.x * N)};                                               \
        any_tile<F, N>(w, row_bytes, x, y, bias, k, n_out, columns);                                                                   \
    }

// Grid: x = tiles of slots of an expert (a loop takes the rest), y = tiles of rows, z = experts.
#define KERNEL_expert_gemm(F, N)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 2)                                                                               \
        expert_gemm__##F##__##N(const uint8_t* w, long long row_bytes, long long expert_bytes, const char* x, const int* lists,        \
                                float* y, int k, int n_out, int n_expert, int slots_per_row) {                                         \
        int expert = (int)blockIdx.z, first = lists[expert], count = lists[expert + 1] - first;                                        \
        for (int at = N * (int)blockIdx.x; at < count; at += N * (int)gridDim.x) {                                                     \
            Slots columns{lists + n_expert + 1 + first + at, min(N, count - at), slots_per_row};                                       \
            any_tile<F, N>(w + expert * expert_bytes, row_bytes, x, y, nullptr, k, n_out, columns);                                    \
        }                                                                                                                              \
    }

// One warp an expert: counts the slots of lesser experts and of its own, then writes its own. Ids that name no expert are in no list.
#define KERNEL_group_experts()                                                                                                         \
    extern "C" __global__ void __launch_bounds__(32) group_experts(const int* ids, int* lists, int n_slots, int n_expert) {            \
        int expert = (int)blockIdx.x, lane = (int)threadIdx.x, before = 0, own = 0;                                                    \
        for (int at = 0; at < n_slots; at += 32) {                                                                                     \
            int id = at + lane < n_slots ? ids[at + lane] : -1;                                                                        \
            before += __popc(__ballot_sync(0xffffffffu, id >= 0 && id < expert));                                                      \
            own += __popc(__ballot_sync(0xffffffffu, id == expert));                                                                   \
        }                                                                                                                              \
        if (lane == 0) lists[expert] = before;                                                                                         \
        if (lane == 0 && expert == n_expert - 1) lists[n_expert] = before + own;                                                       \
        int* slots = lists + n_expert + 1 + before;                                                                                    \
        for (int at = 0; at < n_slots && own > 0; at += 32) {                                                                          \
            unsigned mine = __ballot_sync(0xffffffffu, at + lane < n_slots && ids[at + lane] == expert);                               \
            if (mine >> lane & 1) slots[__popc(mine & ((1u << lane) - 1))] = at + lane;                                                \
            slots += __popc(mine);                                                                                                     \
        }                                                                                                                              \
    }

// Which experts a token goes to: the n_used (<= 32) highest of softmax(logits) in falling order (ties: lower id first), and their weights.
#pragma once
#include "primitives.cuh"
#include "warps.cuh"

namespace route {

// A warp a token; a lane keeps PER logits, expert j * 32 + lane. logits [T][n_expert]; ids, weights [T][n_used]
template <int PER>
__device__ __forceinline__ void pick(const float* logits, int* ids, float* weights, int n_expert, int n_used, int normalize, float scale,
                                     int n_tokens) {
    const int token = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= n_tokens) return;
    float p[PER], largest = -INFINITE, sum = 0.0f;
#pragma unroll
    for (int j = 0; j < PER; j++) {
        p[j] = j * 32 + lane < n_expert ? logits[(size_t)token * n_expert + j * 32 + lane] : -INFINITE;
        largest = fmaxf(largest, p[j]);
    }
    largest = warp_max(largest);
#pragma unroll
    for (int j = 0; j < PER; j++) {
        p[j] = expf(p[j] - largest);
        sum += p[j];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int j = 0; j < PER; j++) p[j] = j * 32 + lane < n_expert ? p[j] / sum : -1.0f;
    float mine = 0.0f, picked = 0.0f;
    int my_id = 0;
    for (int slot = 0; slot < n_used; slot++) {
        float best = -1.0f;
        int id = 1 << 30;
#pragma unroll
        for (int j = 0; j < PER; j++) {
            if (p[j] > best) best = p[j], id = j * 32 + lane;
        }
#pragma unroll
        for (int step = 16; step; step /= 2) {
            const float other = __shfl_xor_sync(~0u, best, step);
            const int other_id = __shfl_xor_sync(~0u, id, step);
            if (other > best || (other == best && other_id < id)) best = other, id = other_id;
        }
        if (id >= n_expert) id = slot;  // nothing compares with NaN: ids stay inside the expert table whatever the logits
#pragma unroll
        for (int j = 0; j < PER; j++) {
            if (id == j * 32 + lane) p[j] = -1.0f;
        }
        picked += best;
        if (slot == lane) mine = best, my_id = id;
    }
    if (lane < n_used) {
        ids[(size_t)token * n_used + lane] = my_id;
        weights[(size_t)token * n_used + lane] = (normalize ? mine / picked : mine) * scale;
    }
}

}  // namespace route

#define KERNEL_route(PER)                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128)                                                                                      \
        route__##PER(const float* logits, int* ids, float* weights, int n_expert, int n_used, int normalize, float scale, int n_tokens) {  \
        route::pick<PER>(logits, ids, weights, n_expert, n_used, normalize, scale, n_tokens);                                              \
    }

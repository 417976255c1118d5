// What CUDA C has no words for, and loads of weights. The only file with inline PTX; under GGRUN_EMULATION the tests' emulation stands for it.
//
//   cp_async16(shared, global); cp_async_commit(); cp_async_wait<N>()    16 bytes, both sides 16-byte aligned; a plain copy before sm_80.
//                                                                        A wait is followed by __syncthreads before others read
//   cp_async4(shared, global)                                            the same of 4 bytes
//   mma_s8_m16n8k32(c, a, b)   c[4] += a[4] x b[2], int8 in, int32 out   from sm_75 on, as all that follow; before that: __trap
//   mma_s8_m16n8k16(c, a, b)   c[4] += a[2] x b[1]
//   mma_f16_m16n8k16(c, a, b)  c[4] += a[4] x b[2], half in, float out
//   ldmatrix_x2/x4(_trans)(r, row)   r[2 or 4]: 8x8 matrices of 16-bit elements; lane 8i + j gives the address of row j of matrix i
//   transpose_8x8(r)           of 16-bit elements: lane 4g + t brings (g, 2t..) and gets (2t.., g)
//   exp2_approx(x)             2 ^ x to 2^-22, 0 at -infinity; tiny results are 0
//   load_u8 ... load_u32x4(p)  weights: read once, past the cache's favourites; the emulation counts their bytes, and cp_async16_weights's
//   DYNAMIC_SHARED(T, name)    the block's dynamic shared memory, 16-byte aligned
//
// Fragments, with g = lane / 4 and t = lane % 4 (a register holds 4 int8 or 2 half of ascending k):
//   A, 16 rows:  int8 k32: a0 (g, 4t..) a1 (g+8, 4t..) a2 (g, 16+4t..) a3 (g+8, 16+4t..); k16: a0 and a1 alone
//                half k16: a0 (g, 2t..) a1 (g+8, 2t..) a2 (g, 8+2t..) a3 (g+8, 8+2t..)
//   B, 8 columns: int8 k32: b0 (4t.., g) b1 (16+4t.., g); k16: b0 alone.  half k16: b0 (2t.., g) b1 (8+2t.., g)
//   C, 16 x 8:   c0 c1 (g, 2t..) c2 c3 (g+8, 2t..)
#pragma once

#ifdef GGRUN_EMULATION
#include "primitives_on_cpu.h"
#else
#include <cuda_fp16.h>
#include <cuda_bf16.h>

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

#define DYNAMIC_SHARED(T, name)                                                                                                             \
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];                                                                   \
    T* name = reinterpret_cast<T*>(dynamic_shared_bytes)

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *reinterpret_cast<int4*>(shared) = *reinterpret_cast<const int4*>(global);
#endif
}
__device__ __forceinline__ void cp_async4(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)), "l"(global) : "memory");
#else
    *reinterpret_cast<int*>(shared) = *reinterpret_cast<const int*>(global);
#endif
}
__device__ __forceinline__ void cp_async16_weights(void* shared, const void* global) { cp_async16(shared, global); }
__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int PENDING> __device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

#if __CUDA_ARCH__ >= 800
__device__ __forceinline__ void mma_s8_m16n8k32(int* c, const int* a, const int* b) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_s8_m16n8k16(int* c, const int* a, const int* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
__device__ __forceinline__ void mma_f16_m16n8k16(float* c, const unsigned* a, const unsigned* b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#elif __CUDA_ARCH__ >= 750     // Turing: the same fragments in halves
__device__ __forceinline__ void mma_s8_m8n8k16(int* c, int a, int b) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1},{%2},{%3},{%0,%1};" : "+r"(c[0]), "+r"(c[1]) : "r"(a), "r"(b));
}
__device__ __forceinline__ void mma_s8_m16n8k16(int* c, const int* a, const int* b) {
    mma_s8_m8n8k16(c, a[0], b[0]);
    mma_s8_m8n8k16(c + 2, a[1], b[0]);
}
__device__ __forceinline__ void mma_s8_m16n8k32(int* c, const int* a, const int* b) {
    mma_s8_m16n8k16(c, a, b);
    mma_s8_m16n8k16(c, a + 2, b + 1);
}
__device__ __forceinline__ void mma_f16_m16n8k8(float* c, const unsigned* a, unsigned b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}
__device__ __forceinline__ void mma_f16_m16n8k16(float* c, const unsigned* a, const unsigned* b) {
    mma_f16_m16n8k8(c, a, b[0]);
    mma_f16_m16n8k8(c, a + 2, b[1]);
}
#else
__device__ __forceinline__ void mma_s8_m16n8k32(int*, const int*, const int*) { __trap(); }
__device__ __forceinline__ void mma_s8_m16n8k16(int*, const int*, const int*) { __trap(); }
__device__ __forceinline__ void mma_f16_m16n8k16(float*, const unsigned*, const unsigned*) { __trap(); }
#endif

__device__ __forceinline__ float exp2_approx(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(result) : "f"(x));
    return result;
}

#if __CUDA_ARCH__ >= 750
__device__ __forceinline__ void ldmatrix_x4(unsigned* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(unsigned* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned* r, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
__device__ __forceinline__ unsigned transpose_8x8(unsigned r) {
    unsigned result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(result) : "r"(r));
    return result;
}
#else
__device__ __forceinline__ unsigned transpose_8x8(unsigned) {
    __trap();
    return 0;
}
__device__ __forceinline__ void ldmatrix_x4(unsigned*, const void*) { __trap(); }
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned*, const void*) { __trap(); }
__device__ __forceinline__ void ldmatrix_x2(unsigned*, const void*) { __trap(); }
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned*, const void*) { __trap(); }
#endif

// weights, through the read-only path. _a2: the address is a multiple of 2 only (a row of Q6_K is 210 bytes a block)
__device__ __forceinline__ unsigned load_u8(const void* p) { return __ldg(reinterpret_cast<const uint8_t*>(p)); }
__device__ __forceinline__ int load_i8(const void* p) { return __ldg(reinterpret_cast<const int8_t*>(p)); }
__device__ __forceinline__ unsigned load_u16(const void* p) { return __ldg(reinterpret_cast<const uint16_t*>(p)); }
__device__ __forceinline__ float load_half(const void* p) { return __half2float(__ushort_as_half((unsigned short)load_u16(p))); }
__device__ __forceinline__ unsigned load_u32_a2(const void* p) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(p);
    return (unsigned)__ldg(halves) | (unsigned)__ldg(halves + 1) << 16;
}
__device__ __forceinline__ unsigned load_u32(const void* p) { return __ldg(reinterpret_cast<const unsigned*>(p)); }
__device__ __forceinline__ uint2 load_u32x2(const void* p) { return __ldg(reinterpret_cast<const uint2*>(p)); }
__device__ __forceinline__ uint4 load_u32x4(const void* p) { return __ldg(reinterpret_cast<const uint4*>(p)); }
__device__ __forceinline__ float load_f32(const void* p) { return __ldg(reinterpret_cast<const float*>(p)); }
#endif

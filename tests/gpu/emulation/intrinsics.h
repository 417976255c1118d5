// CUDA's built-in functions: barriers, warp collectives, atomics, integer and float intrinsics. Those where threads meet carry the line they
// are called at (a default argument), so that threads that meet at different places are told apart.
#pragma once
#define EMULATION_HERE int line = __builtin_LINE(), const char *file = __builtin_FILE()

static inline void __syncthreads(EMULATION_HERE) { emulation::barrier(false, line, file); }
static inline int __syncthreads_count(int p, EMULATION_HERE) { return emulation::barrier(p != 0, line, file); }
static inline int __syncthreads_or(int p, EMULATION_HERE) { return emulation::barrier(p != 0, line, file) != 0; }
static inline int __syncthreads_and(int p, EMULATION_HERE) { return emulation::barrier(p == 0, line, file) == 0; }
static inline void __syncwarp(unsigned mask = ~0u, EMULATION_HERE) {
    char nothing;
    emulation::collective(mask, &nothing, [](void* const*, unsigned) {}, line, file);
}
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}
static inline void __threadfence_system() { __threadfence(); }
static inline void __nanosleep(unsigned) {}
[[noreturn]] static inline void __trap() { emulation::fail("__trap"); }

namespace emulation {

template <class T> struct Shuffled { T value, result; int from; };
template <class T> static T shuffle(unsigned mask, T value, int from, int line, const char* file) {
    Shuffled<T> mine{value, value, from};
    collective(mask, &mine, [](void* const* lanes, unsigned) {
        for (int i = 0; i < 32; i++)
            if (auto* lane = static_cast<Shuffled<T>*>(lanes[i])) {
                if (auto* source = static_cast<Shuffled<T>*>(lanes[lane->from & 31])) lane->result = source->value;
                else memset((void*)&lane->result, 0xCB, sizeof(T));          // a lane that is not there
            }
    }, line, file);
    return mine.result;
}
struct Vote { int predicate; unsigned ballot; };
static inline unsigned vote(unsigned mask, int predicate, int line, const char* file) {
    Vote mine{predicate, 0};
    collective(mask, &mine, [](void* const* lanes, unsigned) {
        unsigned ballot = 0;
        for (int i = 0; i < 32; i++) if (auto* lane = static_cast<Vote*>(lanes[i])) ballot |= (unsigned)(lane->predicate != 0) << i;
        for (int i = 0; i < 32; i++) if (auto* lane = static_cast<Vote*>(lanes[i])) lane->ballot = ballot;
    }, line, file);
    return mine.ballot;
}
static inline int lane() { return block->thread->lane; }

}  // namespace emulation

template <class T> static inline T __shfl_sync(unsigned m, T v, int source, int width = 32, EMULATION_HERE) {
    const int l = emulation::lane();
    return emulation::shuffle(m, v, (l & ~(width - 1)) | (source & (width - 1)), line, file);
}
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int x, int width = 32, EMULATION_HERE) {
    const int l = emulation::lane(), from = l ^ x;
    return emulation::shuffle(m, v, from / width > l / width ? l : from, line, file);
}
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned d, int width = 32, EMULATION_HERE) {
    const int l = emulation::lane();
    return emulation::shuffle(m, v, (l & (width - 1)) + (int)d < width ? l + (int)d : l, line, file);
}
template <class T> static inline T __shfl_up_sync(unsigned m, T v, unsigned d, int width = 32, EMULATION_HERE) {
    const int l = emulation::lane();
    return emulation::shuffle(m, v, (l & (width - 1)) >= (int)d ? l - (int)d : l, line, file);
}
static inline unsigned __ballot_sync(unsigned m, int p, EMULATION_HERE) { return emulation::vote(m, p, line, file); }
static inline int __any_sync(unsigned m, int p, EMULATION_HERE) { return emulation::vote(m, p, line, file) != 0; }
static inline int __all_sync(unsigned m, int p, EMULATION_HERE) { return emulation::vote(m, !p, line, file) == 0; }
static inline unsigned __activemask() { emulation::fail("__activemask says nothing that a kernel may rely on"); }

namespace emulation {
struct Reduced { long long value; long long result; };
template <class F> static inline long long reduce(unsigned mask, long long value, F, int line, const char* file) {
    Reduced mine{value, 0};
    collective(mask, &mine, [](void* const* lanes, unsigned) {
        bool first = true;
        long long total = 0;
        for (int i = 0; i < 32; i++)
            if (auto* lane = static_cast<Reduced*>(lanes[i])) { total = first ? lane->value : F::of(total, lane->value); first = false; }
        for (int i = 0; i < 32; i++) if (auto* lane = static_cast<Reduced*>(lanes[i])) lane->result = total;
    }, line, file);
    return mine.result;
}
struct Sum { static long long of(long long a, long long b) { return a + b; } };
struct Largest { static long long of(long long a, long long b) { return a > b ? a : b; } };
struct Smallest { static long long of(long long a, long long b) { return a < b ? a : b; } };
}  // namespace emulation
static inline int __reduce_add_sync(unsigned m, int v, EMULATION_HERE) { return (int)emulation::reduce(m, v, emulation::Sum{}, line, file); }
static inline int __reduce_max_sync(unsigned m, int v, EMULATION_HERE) { return (int)emulation::reduce(m, v, emulation::Largest{}, line, file); }
static inline int __reduce_min_sync(unsigned m, int v, EMULATION_HERE) { return (int)emulation::reduce(m, v, emulation::Smallest{}, line, file); }
static inline unsigned __reduce_add_sync(unsigned m, unsigned v, EMULATION_HERE) { return (unsigned)emulation::reduce(m, v, emulation::Sum{}, line, file); }
static inline unsigned __reduce_max_sync(unsigned m, unsigned v, EMULATION_HERE) { return (unsigned)emulation::reduce(m, v, emulation::Largest{}, line, file); }
static inline unsigned __reduce_min_sync(unsigned m, unsigned v, EMULATION_HERE) { return (unsigned)emulation::reduce(m, v, emulation::Smallest{}, line, file); }

namespace emulation {
template <class T, class F> static inline T update(T* p, F change) {
    using Bits = typename std::conditional<sizeof(T) == 4, uint32_t, uint64_t>::type;
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are 4 or 8 bytes wide");
    if ((uintptr_t)p % sizeof(T)) fail("atomic at %p is not aligned", (void*)p);
    Bits old = __atomic_load_n((Bits*)p, __ATOMIC_SEQ_CST);
    for (;;) {
        T before, after;
        memcpy(&before, &old, sizeof(T));
        after = change(before);
        Bits bits;
        memcpy(&bits, &after, sizeof(T));
        if (__atomic_compare_exchange_n((Bits*)p, &old, bits, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return before;
    }
}
template <class T> struct Same { typedef T type; };
}  // namespace emulation
#define EMULATION_ATOMIC(NAME, RESULT) \
    template <class T> static inline T NAME(T* p, typename emulation::Same<T>::type v) { return emulation::update(p, [=](T old) { return (T)(RESULT); }); }
EMULATION_ATOMIC(atomicAdd, old + v)
EMULATION_ATOMIC(atomicSub, old - v)
EMULATION_ATOMIC(atomicMax, old < v ? v : old)
EMULATION_ATOMIC(atomicMin, v < old ? v : old)
EMULATION_ATOMIC(atomicOr, old | v)
EMULATION_ATOMIC(atomicAnd, old & v)
EMULATION_ATOMIC(atomicXor, old ^ v)
EMULATION_ATOMIC(atomicExch, v)
#undef EMULATION_ATOMIC
static inline unsigned atomicInc(unsigned* p, unsigned v) { return emulation::update(p, [=](unsigned old) { return old >= v ? 0u : old + 1; }); }
template <class T> static inline T atomicCAS(T* p, typename emulation::Same<T>::type expected, typename emulation::Same<T>::type v) {
    return emulation::update(p, [=](T old) { return old == expected ? v : old; });
}

static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 4; i++) c += (uint8_t)(a >> 8 * i) * (unsigned)(uint8_t)(b >> 8 * i);
    return c;
}
#define EMULATION_BYTES(NAME, T, RESULT) \
    static inline unsigned NAME(unsigned a, unsigned b) { \
        unsigned r = 0; \
        for (int i = 0; i < 4; i++) { const T x = (T)(a >> 8 * i), y = (T)(b >> 8 * i); r |= (unsigned)(uint8_t)(RESULT) << 8 * i; } \
        return r; \
    }
EMULATION_BYTES(__vadd4, uint8_t, x + y)
EMULATION_BYTES(__vsub4, uint8_t, x - y)
EMULATION_BYTES(__vcmpeq4, uint8_t, x == y ? 255 : 0)
EMULATION_BYTES(__vcmpne4, uint8_t, x != y ? 255 : 0)
EMULATION_BYTES(__vsubss4, int8_t, x - y > 127 ? 127 : x - y < -128 ? -128 : x - y)
EMULATION_BYTES(__vaddss4, int8_t, x + y > 127 ? 127 : x + y < -128 ? -128 : x + y)
#undef EMULATION_BYTES
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x) { unsigned r = 0; for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i); return r; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __mul24(int a, int b) { return (int)((int64_t)(a << 8 >> 8) * (b << 8 >> 8)); }
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) { return (unsigned)(((uint64_t)hi << 32 | lo) >> (n & 31)); }
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) { return (unsigned)(((uint64_t)hi << 32 | lo) << (n & 31) >> 32); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t both = (uint64_t)b << 32 | a;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned k = selector >> 4 * i & 15;
        unsigned byte = (unsigned)(both >> 8 * (k & 7)) & 255;
        if (k & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline T __ldlu(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }

#define __expf expf          // glibc has the name
#define __logf logf
#define __sinf sinf
#define __cosf cosf
#define __powf powf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline void sincospif(float x, float* sine, float* cosine) {
    *sine = (float)sin(x * 3.14159265358979323846);
    *cosine = (float)cos(x * 3.14159265358979323846);
}
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __saturatef(float x) { return x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f; }
static inline float __int_as_float(int i) { return emulation::float_of((uint32_t)i); }
static inline float __uint_as_float(unsigned u) { return emulation::float_of(u); }
static inline int __float_as_int(float f) { return (int)emulation::bits_of(f); }
static inline unsigned __float_as_uint(float f) { return emulation::bits_of(f); }
static inline int __float2int_rn(float f) { return (int)lrintf(f); }
static inline int __float2int_rz(float f) { return (int)f; }
static inline int __float2int_rd(float f) { return (int)floorf(f); }
static inline float __int2float_rn(int i) { return (float)i; }
static inline float __uint2float_rn(unsigned u) { return (float)u; }

// The CPU's side of primitives.cuh: the same functions, with every rule checked that hardware would answer with garbage or a fault.
#pragma once

#define DYNAMIC_SHARED(T, name) T* name = reinterpret_cast<T*>(emulation::block->shared)

template <int SIZE> static inline void copy_to_shared(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    emulation::copy_async(shared, global, SIZE);
#else
    memcpy(shared, global, SIZE);
#endif
}
static inline void cp_async16(void* shared, const void* global) { copy_to_shared<16>(shared, global); }
static inline void cp_async4(void* shared, const void* global) { copy_to_shared<4>(shared, global); }
static inline void cp_async16_weights(void* shared, const void* global) {
    emulation::block->weight_bytes += 16;
    cp_async16(shared, global);
}
static inline void cp_async_commit() { emulation::copy_commit(); }
template <int PENDING> static inline void cp_async_wait() { emulation::copy_wait(PENDING); }

namespace emulation {

// one lane's part of a matrix product; N_A and N_B registers
template <class Sum, int N_A, int N_B> struct Fragments {
    Sum c[4];
    uint32_t a[N_A], b[N_B];
};

// D[row, column] += A[row, k] x B[k, column] over a warp: see the fragment tables in primitives.cuh. Product(a, b): of two registers
template <class Sum, int N_A, int N_B, class Product> static void matrix_product(Sum* c, const void* a, const void* b, Product, int line, const char* file) {
    typedef Fragments<Sum, N_A, N_B> Mine;
    Mine mine;
    memcpy(mine.c, c, sizeof mine.c);
    memcpy(mine.a, a, sizeof mine.a);
    memcpy(mine.b, b, sizeof mine.b);
#if __CUDA_ARCH__ < 750
    fail("tensor cores on a device that has none");
#endif
    collective(~0u, &mine, [](void* const* lanes, unsigned) {
        for (int i = 0; i < 32; i++) if (!lanes[i]) fail("a matrix product in a warp of fewer than 32 threads");
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                typename Product::Wide sum = 0;
                for (int t = 0; t < 4; t++) {
                    auto* of_a = static_cast<Mine*>(lanes[(row & 7) * 4 + t]);
                    auto* of_b = static_cast<Mine*>(lanes[column * 4 + t]);
                    for (int part = 0; part < N_B; part++) sum += Product::of(of_a->a[part * 2 + row / 8], of_b->b[part]);
                }
                auto* of_c = static_cast<Mine*>(lanes[(row & 7) * 4 + column / 2]);
                Sum& total = of_c->c[row / 8 * 2 + column % 2];
                total = (Sum)(total + sum);
            }
    }, line, file);
    memcpy(c, mine.c, sizeof mine.c);
}
struct Int8Product {
    typedef int Wide;
    static int of(uint32_t a, uint32_t b) { return __dp4a((int)a, (int)b, 0); }
};
struct HalfProduct {          // exact products, summed in double: hardware rounds more often
    typedef double Wide;
    static double of(uint32_t a, uint32_t b) {
        const __half lo_a{(uint16_t)a}, hi_a{(uint16_t)(a >> 16)}, lo_b{(uint16_t)b}, hi_b{(uint16_t)(b >> 16)};
        return (double)__half2float(lo_a) * __half2float(lo_b) + (double)__half2float(hi_a) * __half2float(hi_b);
    }
};

struct MatrixRows { const void* row; uint32_t r[4]; };
template <int N, bool TRANSPOSED> static void load_matrix(unsigned* r, const void* row, int line, const char* file) {
    MatrixRows mine{row, {}};
#if __CUDA_ARCH__ < 750
    fail("ldmatrix on a device that has none");
#endif
    collective(~0u, &mine, [](void* const* lanes, unsigned) {
        for (int i = 0; i < 32; i++) if (!lanes[i]) fail("ldmatrix in a warp of fewer than 32 threads");
        for (int matrix = 0; matrix < N; matrix++) {
            uint16_t element[8][8];
            for (int i = 0; i < 8; i++) {
                const void* from = static_cast<MatrixRows*>(lanes[matrix * 8 + i])->row;
                if ((uintptr_t)from % 16) fail("ldmatrix: row at %p is not 16-byte aligned", from);
                memcpy(element[i], from, 16);
            }
            for (int l = 0; l < 32; l++) {
                const int i = l / 4, j = l % 4 * 2;
                const uint32_t lo = TRANSPOSED ? element[j][i] : element[i][j], hi = TRANSPOSED ? element[j + 1][i] : element[i][j + 1];
                static_cast<MatrixRows*>(lanes[l])->r[matrix] = lo | hi << 16;
            }
        }
    }, line, file);
    memcpy(r, mine.r, N * sizeof(unsigned));
}

struct Transposed { uint32_t r, result; };

template <class T> static inline T load_weight(const void* p, size_t alignment = sizeof(T)) {
    if ((uintptr_t)p % alignment) fail("load of %zu bytes at %p is not aligned", sizeof(T), p);
    block->weight_bytes += sizeof(T);
    T value;
    memcpy(&value, p, sizeof(T));
    return value;
}

}  // namespace emulation

static inline void mma_s8_m16n8k32(int* c, const int* a, const int* b, EMULATION_HERE) {
    emulation::matrix_product<int, 4, 2>(c, a, b, emulation::Int8Product{}, line, file);
}
static inline void mma_s8_m16n8k16(int* c, const int* a, const int* b, EMULATION_HERE) {
    emulation::matrix_product<int, 2, 1>(c, a, b, emulation::Int8Product{}, line, file);
}
static inline void mma_f16_m16n8k16(float* c, const unsigned* a, const unsigned* b, EMULATION_HERE) {
    emulation::matrix_product<float, 4, 2>(c, a, b, emulation::HalfProduct{}, line, file);
}
static inline void ldmatrix_x4(unsigned* r, const void* row, EMULATION_HERE) { emulation::load_matrix<4, false>(r, row, line, file); }
static inline void ldmatrix_x4_trans(unsigned* r, const void* row, EMULATION_HERE) { emulation::load_matrix<4, true>(r, row, line, file); }
static inline void ldmatrix_x2(unsigned* r, const void* row, EMULATION_HERE) { emulation::load_matrix<2, false>(r, row, line, file); }
static inline void ldmatrix_x2_trans(unsigned* r, const void* row, EMULATION_HERE) { emulation::load_matrix<2, true>(r, row, line, file); }

static inline float exp2_approx(float x) { return exp2f(x); }
static inline unsigned transpose_8x8(unsigned r, EMULATION_HERE) {
    emulation::Transposed mine{r, 0};
#if __CUDA_ARCH__ < 750
    emulation::fail("movmatrix on a device that has none");
#endif
    emulation::collective(~0u, &mine, [](void* const* lanes, unsigned) {
        for (int l = 0; l < 32; l++) {
            if (!lanes[l]) emulation::fail("movmatrix in a warp of fewer than 32 threads");
            auto* lane = static_cast<emulation::Transposed*>(lanes[l]);
            for (int e = 0; e < 2; e++) {       // element (l / 4, 2 * (l % 4) + e) of the result
                const uint32_t from = static_cast<emulation::Transposed*>(lanes[(2 * (l % 4) + e) * 4 + l / 8])->r;
                lane->result |= (from >> (l / 4 % 2 ? 16 : 0) & 0xFFFF) << 16 * e;
            }
        }
    }, line, file);
    return mine.result;
}

static inline unsigned load_u8(const void* p) { return emulation::load_weight<uint8_t>(p); }
static inline int load_i8(const void* p) { return emulation::load_weight<int8_t>(p); }
static inline unsigned load_u16(const void* p) { return emulation::load_weight<uint16_t>(p); }
static inline float load_half(const void* p) { return __half2float(__half{emulation::load_weight<uint16_t>(p)}); }
static inline unsigned load_u32_a2(const void* p) { return emulation::load_weight<uint32_t>(p, 2); }
static inline unsigned load_u32(const void* p) { return emulation::load_weight<uint32_t>(p); }
static inline uint2 load_u32x2(const void* p) { return emulation::load_weight<uint2>(p); }
static inline uint4 load_u32x4(const void* p) { return emulation::load_weight<uint4>(p); }
static inline float load_f32(const void* p) { return emulation::load_weight<float>(p); }

// Modules and launches: an image is a shared library that the stand-in compiler made.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../fibers.h"
#include "state.h"

using namespace standin;

ENTRY cuDeviceGetAttribute(int* value, int attribute, int device);

namespace {
struct Module { void* library; Context* context; };
typedef int Emulated(const char* bytes, size_t size, const unsigned* grid, const unsigned* threads, size_t shared);
struct Function { Emulated* run; std::string name; size_t shared_allowed = 49152; Context* context; };
constexpr uint16_t CUDA_MACHINE = 190;
}

ENTRY cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
    HOLD; CHECK_CONTEXT;
    if (Result r = taken()) return r;
    const auto* elf = (const unsigned char*)image;
    if (memcmp(elf, "\177ELF", 4) || *(const uint16_t*)(elf + 18) == CUDA_MACHINE) return INVALID_IMAGE;
    const size_t size = *(const uint64_t*)(elf + 40) + (size_t) * (const uint16_t*)(elf + 58) * *(const uint16_t*)(elf + 60);
    char path[] = "/tmp/ggrun-kernels-XXXXXX";         // a name of its own: dlopen takes libraries of one name for the same
    const int file = mkstemp(path);
    size_t written = 0;
    while (written < size) {
        const ssize_t n = write(file, elf + written, size - written);
        if (n <= 0) return close(file), unlink(path), OUT_OF_MEMORY;
        written += (size_t)n;
    }
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    close(file);
    unlink(path);
    if (!library) return fprintf(stderr, "stand-in driver: %s\n", dlerror()), INVALID_IMAGE;
    state().counters.modules++;
    current()->modules++;
    *module = new Module{library, current()};
    return SUCCESS;
}
ENTRY cuModuleLoadData(void** module, const void* image) { return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr); }
ENTRY cuModuleUnload(void* module) {
    HOLD;
    drain_all();
    if (Context* context = ((Module*)module)->context; context->modules) context->modules--;
    delete (Module*)module;            // the library stays: a graph may still hold its kernels
    return SUCCESS;
}
ENTRY cuModuleGetFunction(void** function, void* module, const char* name) {
    auto* m = (Module*)module;
    auto* run = (Emulated*)dlsym(m->library, (std::string("emulated_") + name).c_str());
    if (!run) return NOT_FOUND;
    *function = new Function{run, name, 49152, m->context};
    return SUCCESS;
}

ENTRY cuFuncGetAttribute(int* value, int attribute, void*) {
    // 0 threads a block, 1 static shared, 2 constant, 3 local bytes, 4 registers, 5 PTX and 6 binary version
    static const int VALUES[] = {1024, 0, 0, 0, 32, 70, 90};
    *value = attribute >= 0 && attribute < 7 ? VALUES[attribute] : 0;
    return SUCCESS;
}
ENTRY cuFuncSetAttribute(void* function, int attribute, int value) {
    if (attribute == 8) {              // dynamic shared bytes beyond 48 KiB
        int most = 0;
        cuDeviceGetAttribute(&most, 97, ((Function*)function)->context->device);
        if (value < 0 || value > most) return INVALID_VALUE;
        ((Function*)function)->shared_allowed = (size_t)value;
    }
    return SUCCESS;
}
ENTRY cuFuncSetCacheConfig(void*, int) { return SUCCESS; }
ENTRY cuFuncSetBlockShape(void*, int, int, int) { return SUCCESS; }
ENTRY cuFuncSetSharedSize(void*, unsigned) { return SUCCESS; }
ENTRY cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int threads, size_t) { *n = threads > 0 ? 1536 / threads : 0; return SUCCESS; }

ENTRY cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                     void** parameters, void** extra) {
    HOLD; CHECK_CONTEXT;
    auto* function = (Function*)handle;
    if (parameters || !extra) return INVALID_VALUE;                              // ggrun packs its arguments
    if (function->context != current() || stream_of(stream)->context != current()) return INVALID_HANDLE;
    const char* bytes = nullptr;
    size_t size = 0;
    for (int i = 0; extra[i]; i += 2) {
        if ((uintptr_t)extra[i] == 1) bytes = (const char*)extra[i + 1];
        if ((uintptr_t)extra[i] == 2) size = *(size_t*)extra[i + 1];
    }
    if (!gx || !gy || !gz || !bx || !by || !bz || (size_t)bx * by * bz > 1024 || bz > 64 || gx > 0x7fffffff || gy > 65535 || gz > 65535) return INVALID_VALUE;
    if (shared > function->shared_allowed) return INVALID_VALUE;
    const std::vector<char> packed(bytes, bytes + size);
    if (!stream_of(stream)->capture) state().counters.launch_calls++;
    return push(stream, [=]() -> Result {
        const unsigned grid[] = {gx, gy, gz}, threads[] = {bx, by, bz};
        State& s = state();
        s.counters.launches++;
        s.counters.kernels[function->name]++;
        const int failed = function->run(packed.data(), packed.size(), grid, threads, shared);
        if (!failed) return SUCCESS;
        s.error = failed == 2 ? function->name + ": " + std::to_string(packed.size()) + " bytes of arguments are not what it takes" : emulation_error();
        emulation_clear();
        fprintf(stderr, "stand-in driver: %s\n", s.error.c_str());
        return LAUNCH_FAILED;
    });
}

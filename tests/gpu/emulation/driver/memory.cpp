// Memory and copies. Device memory is host memory: filled with 0xCB, a page that no one may touch right behind it, counted honestly.
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

#include "state.h"

namespace standin {

constexpr size_t PAGE = 4096;
constexpr int POISON = 0xCB;

Result taken() {
    State& s = state();
    if (s.ready) return s.counters.after_ready++, OUT_OF_MEMORY;
    return SUCCESS;
}

static int64_t own_of(const Context* context, int device) {       // what the driver keeps for itself
    const Settings& s = state().settings;
    return context->device == device && context->retained ? s.context_bytes + context->modules * s.module_bytes : 0;
}
uint64_t free_of(int device) {
    State& s = state();
    int64_t left = memory_of(device) - (int64_t)s.used[device];
    for (const auto* list : {&s.primary, &s.others}) for (const Context* context : *list) left -= own_of(context, device);
    return left > 0 ? (uint64_t)left : 0;
}

bool on_device(Address address, size_t bytes) {
    auto next = state().memory.upper_bound(address);
    if (next == state().memory.begin()) return false;
    --next;
    return address + bytes <= next->first + next->second.bytes;
}

bool is_pinned(const void* address, size_t bytes) {
    auto next = state().pinned.upper_bound((Address)address);
    if (next == state().pinned.begin()) return false;
    --next;
    return (Address)address + bytes <= next->first + next->second.bytes;
}

}  // namespace standin

using namespace standin;

ENTRY cuMemGetInfo_v2(size_t* free, size_t* total) {
    HOLD; CHECK_CONTEXT;
    *free = free_of(current()->device);
    *total = (size_t)memory_of(current()->device);
    return SUCCESS;
}

ENTRY cuMemAlloc_v2(Address* address, size_t bytes) {
    HOLD; CHECK_CONTEXT;
    State& s = state();
    const int device = current()->device;
    if (capturing()) return STREAM_CAPTURE_UNSUPPORTED;
    if (!bytes) return INVALID_VALUE;
    if (Result r = taken()) return r;
    if (bytes > free_of(device)) return OUT_OF_MEMORY;
    const size_t rounded = (bytes + 255) / 256 * 256, mapped = (rounded + PAGE - 1) / PAGE * PAGE;
    char* mapping = (char*)mmap(nullptr, mapped + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    mprotect(mapping + mapped, PAGE, PROT_NONE);
    char* start = mapping + mapped - rounded;
    const size_t limit = (size_t)s.settings.poison_bytes;         // more would take real memory that a test of true sizes has not got
    memset(start, POISON, rounded < limit ? rounded : limit);
    *address = (Address)start;
    s.memory[*address] = {bytes, mapping, mapped + PAGE, device};
    s.counters.allocations++;
    s.used[device] += bytes;
    if (s.used[device] > s.peak[device]) s.peak[device] = s.used[device];
    return SUCCESS;
}
ENTRY cuMemFree_v2(Address address) {
    HOLD;
    State& s = state();
    auto found = s.memory.find(address);
    if (found == s.memory.end()) return INVALID_VALUE;
    drain_all();
    munmap(found->second.mapping, found->second.mapped);
    s.used[found->second.device] -= found->second.bytes;
    s.counters.frees++;
    s.memory.erase(found);
    return SUCCESS;
}
ENTRY cuMemGetAddressRange_v2(Address* start, size_t* bytes, Address address) {
    HOLD;
    auto next = state().memory.upper_bound(address);
    if (next == state().memory.begin()) return INVALID_VALUE;
    --next;
    if (start) *start = next->first;
    if (bytes) *bytes = next->second.bytes;
    return SUCCESS;
}

ENTRY cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    HOLD; CHECK_CONTEXT;
    if (Result r = taken()) return r;
    if (posix_memalign(address, PAGE, bytes ? bytes : 1)) return OUT_OF_MEMORY;
    memset(*address, POISON, bytes);
    state().pinned[(Address)*address] = {bytes, true};
    state().counters.host_allocations++;
    return SUCCESS;
}
ENTRY cuMemFreeHost(void* address) {
    HOLD;
    auto found = state().pinned.find((Address)address);
    if (found == state().pinned.end() || !found->second.allocated) return INVALID_VALUE;
    drain_all();
    state().pinned.erase(found);
    free(address);
    return SUCCESS;
}
ENTRY cuMemHostRegister_v2(void* address, size_t bytes, unsigned) {
    HOLD; CHECK_CONTEXT;
    if (Result r = taken()) return r;
    if (is_pinned(address, 1)) return HOST_MEMORY_ALREADY_REGISTERED;
    state().pinned[(Address)address] = {bytes, false};
    return SUCCESS;
}
ENTRY cuMemHostUnregister(void* address) {
    HOLD;
    auto found = state().pinned.find((Address)address);
    if (found == state().pinned.end() || found->second.allocated) return HOST_MEMORY_NOT_REGISTERED;
    drain_all();
    state().pinned.erase(found);
    return SUCCESS;
}
ENTRY cuMemHostGetDevicePointer_v2(Address* address, void* host, unsigned) {
    HOLD;
    if (!is_pinned(host, 1)) return INVALID_VALUE;
    *address = (Address)host;
    return SUCCESS;
}
ENTRY cuMemHostGetFlags(unsigned* flags, void*) { *flags = 0; return SUCCESS; }

// what a copy does when its turn comes
static std::function<Result()> to_device(Address to, const void* from, size_t n) {
    return [=] { memcpy((void*)to, from, n); state().counters.bytes_h2d += n; state().counters.copies_h2d++; return SUCCESS; };
}
static std::function<Result()> to_host(void* to, Address from, size_t n) {
    return [=] { memcpy(to, (const void*)from, n); state().counters.bytes_d2h += n; state().counters.copies_d2h++; return SUCCESS; };
}
static std::function<Result()> within(Address to, Address from, size_t n) {
    return [=] { memmove((void*)to, (const void*)from, n); state().counters.bytes_d2d += n; state().counters.copies_d2d++; return SUCCESS; };
}
static bool device_side(Address a, size_t n) { return on_device(a, n) || is_pinned((void*)a, n); }

ENTRY cuMemcpyHtoD_v2(Address to, const void* from, size_t n) { HOLD; CHECK_CONTEXT; return device_side(to, n) ? now(to_device(to, from, n)) : INVALID_VALUE; }
ENTRY cuMemcpyDtoH_v2(void* to, Address from, size_t n) { HOLD; CHECK_CONTEXT; return device_side(from, n) ? now(to_host(to, from, n)) : INVALID_VALUE; }
ENTRY cuMemcpyDtoD_v2(Address to, Address from, size_t n) {
    HOLD; CHECK_CONTEXT;
    return device_side(to, n) && device_side(from, n) ? push(nullptr, within(to, from, n)) : INVALID_VALUE;
}
// from pageable memory the driver copies first and returns then; into pageable memory it waits
ENTRY cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, void* stream) {
    HOLD; CHECK_CONTEXT;
    if (!device_side(to, n)) return INVALID_VALUE;
    if (is_pinned(from, n)) return push(stream, to_device(to, from, n));
    if (stream_of(stream)->capture) return STREAM_CAPTURE_UNSUPPORTED;
    auto copy = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + n);
    return push(stream, [=] { return to_device(to, copy->data(), n)(); });
}
ENTRY cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* stream) {
    HOLD; CHECK_CONTEXT;
    if (!device_side(from, n)) return INVALID_VALUE;
    if (!is_pinned(to, n) && stream_of(stream)->capture) return STREAM_CAPTURE_UNSUPPORTED;
    if (Result r = push(stream, to_host(to, from, n))) return r;
    return is_pinned(to, n) ? SUCCESS : drain(stream_of(stream));
}
ENTRY cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void* stream) {
    HOLD; CHECK_CONTEXT;
    return device_side(to, n) && device_side(from, n) ? push(stream, within(to, from, n)) : INVALID_VALUE;
}
// both sides are addresses of one space: host memory counts as host memory when it is pinned
ENTRY cuMemcpyAsync(Address to, Address from, size_t n, void* stream) {
    HOLD;
    if (!on_device(to, n)) return cuMemcpyDtoHAsync_v2((void*)to, from, n, stream);
    return on_device(from, n) ? cuMemcpyDtoDAsync_v2(to, from, n, stream) : cuMemcpyHtoDAsync_v2(to, (const void*)from, n, stream);
}
ENTRY cuMemcpyPeerAsync(Address to, void*, Address from, void*, size_t n, void* stream) { return cuMemcpyDtoDAsync_v2(to, from, n, stream); }
ENTRY cuMemcpyPeer(Address to, void*, Address from, void*, size_t n) { HOLD; return now(within(to, from, n)); }

ENTRY cuMemsetD8Async(Address to, unsigned char value, size_t n, void* stream) {
    HOLD; CHECK_CONTEXT;
    return on_device(to, n) ? push(stream, [=] { memset((void*)to, value, n); return SUCCESS; }) : INVALID_VALUE;
}
ENTRY cuMemsetD32Async(Address to, unsigned value, size_t n, void* stream) {
    HOLD; CHECK_CONTEXT;
    if (!on_device(to, n * 4)) return INVALID_VALUE;
    return push(stream, [=] { for (size_t i = 0; i < n; i++) ((unsigned*)to)[i] = value; return SUCCESS; });
}
ENTRY cuMemsetD8_v2(Address to, unsigned char value, size_t n) { return cuMemsetD8Async(to, value, n, nullptr); }
ENTRY cuMemsetD32_v2(Address to, unsigned value, size_t n) { return cuMemsetD32Async(to, value, n, nullptr); }

// The stand-in driver's state. One lock; work that streams hold is done when somebody waits for it (lazy), or at once (GGRUN_STANDIN_EAGER=1).
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace standin {

typedef int Result;
typedef uint64_t Address;
enum : Result {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_OUT_OF_RESOURCES = 701, HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801, STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901, ILLEGAL_STATE = 904, DEADLOCK = 999,
};

struct Stream;
struct Event { uint64_t recorded = 0, reached = 0; double when = 0; Stream* where = nullptr; Stream* captured_in = nullptr; };
struct Work {
    std::function<Result()> act;
    Event* needs = nullptr;          // not before this event has reached `mark`
    uint64_t mark = 0;
};
struct Graph { std::vector<Work> work; };
struct Context { int device; int retained = 0; Stream* standard = nullptr; bool primary = false; int modules = 0; };
struct Stream { Context* context; std::deque<Work> queue; Graph* capture = nullptr; bool running = false, owns_capture = false; };
struct Allocation { size_t bytes; char* mapping; size_t mapped; int device; };
struct Pinned { size_t bytes; bool allocated; };

struct Settings {                    // by environment GGRUN_STANDIN_<NAME>, or standin_set(name, value)
    int64_t devices = 1, capability = 90, driver = 12090, context_bytes = 64 << 20, module_bytes = 0, eager = 0, processors = 4, fail_init = 0,
            poison_bytes = 256 << 20;
    std::vector<int64_t> memory{8ll << 30};       // of each device; the last counts for all others. MEMORY=8589934592,4294967296
    std::vector<int64_t> capabilities{};          // CAPABILITY=86,75
};

struct Counters {
    uint64_t launches = 0, launch_calls = 0, graph_launches = 0, copies_h2d = 0, copies_d2h = 0, copies_d2d = 0, bytes_h2d = 0, bytes_d2h = 0,
             bytes_d2d = 0, allocations = 0, host_allocations = 0, frees = 0, after_ready = 0, modules = 0, graphs = 0, synchronizations = 0;
    std::map<std::string, uint64_t> kernels;
};

struct State {
    std::recursive_mutex lock;
    Settings settings;
    Counters counters;
    bool ready = false, initialized = false;
    Result broken = SUCCESS;                      // sticky, as a kernel's fault is
    std::string error;
    std::vector<Context*> primary, others;         // others: made, not retained
    std::vector<Stream*> streams;
    std::map<Address, Allocation> memory;
    std::map<Address, Pinned> pinned;
    std::vector<uint64_t> used, peak;             // bytes of each device
};
State& state();
int64_t memory_of(int device);
uint64_t free_of(int device);
int64_t capability_of(int device);

extern thread_local std::vector<Context*> contexts;
Context* current();

// streams
Stream* stream_of(void* handle);
Result push(void* handle, std::function<Result()> act);            // into the stream, or into the graph it captures
Result drain(Stream* stream);
Result drain_all();
bool capturing();
Result now(std::function<Result()> act);                           // a call that waits for everything before it
Result taken();                                                    // a call that takes memory: counts it, refuses it after "ready"
void write_report();

// copies: the device's side must be inside one allocation
bool on_device(Address address, size_t bytes);
bool is_pinned(const void* address, size_t bytes);

}  // namespace standin

#define ENTRY extern "C" __attribute__((visibility("default"))) int
#define HOLD std::lock_guard<std::recursive_mutex> hold(standin::state().lock)
#define CHECK_CONTEXT if (!current()) return INVALID_CONTEXT; if (state().broken) return state().broken

// Devices, contexts, settings, counters.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "../fibers.h"
#include "state.h"

namespace standin {

thread_local std::vector<Context*> contexts;
Context* current() { return contexts.empty() ? nullptr : contexts.back(); }

static void set_list(std::vector<int64_t>& list, const char* text) {
    list.clear();
    std::stringstream words(text);
    for (std::string word; std::getline(words, word, ',');) list.push_back(atoll(word.c_str()));
}

static bool set(Settings& s, const std::string& name, const char* text) {
    struct { const char* name; int64_t* value; } plain[] = {
        {"devices", &s.devices}, {"driver", &s.driver}, {"context_bytes", &s.context_bytes}, {"module_bytes", &s.module_bytes}, {"eager", &s.eager},
        {"processors", &s.processors}, {"fail_init", &s.fail_init}, {"poison_bytes", &s.poison_bytes},
    };
    for (auto& one : plain) if (name == one.name) return *one.value = atoll(text), true;
    if (name == "memory") return set_list(s.memory, text), true;
    if (name == "capability") return set_list(s.capabilities, text), true;
    return false;
}

static Settings from_environment() {
    Settings s;
    for (const char* name : {"devices", "driver", "context_bytes", "module_bytes", "eager", "processors", "fail_init", "poison_bytes", "memory", "capability"}) {
        std::string variable = std::string("GGRUN_STANDIN_") + name;
        std::transform(variable.begin(), variable.end(), variable.begin(), ::toupper);
        if (const char* text = getenv(variable.c_str())) set(s, name, text);
    }
    return s;
}

State& state() {
    static State* s = [] {
        auto* fresh = new State;
        fresh->settings = from_environment();
        atexit(write_report);
        return fresh;
    }();
    return *s;
}

static int64_t nth(const std::vector<int64_t>& list, int i, int64_t otherwise) {
    return list.empty() ? otherwise : list[std::min<size_t>((size_t)i, list.size() - 1)];
}
int64_t memory_of(int device) { return nth(state().settings.memory, device, 0); }
int64_t capability_of(int device) { return nth(state().settings.capabilities, device, state().settings.capability); }

static Context* fresh(int device, bool primary) {
    auto* context = new Context{device};
    context->primary = primary;
    context->standard = new Stream{context};
    state().streams.push_back(context->standard);
    (primary ? state().primary : state().others).push_back(context);
    return context;
}
static void prepare(int device) {
    State& s = state();
    if ((int)s.primary.size() > device) return;
    for (int i = (int)s.primary.size(); i <= device; i++) {
        fresh(i, true);
        s.used.push_back(0);
        s.peak.push_back(0);
    }
}
static bool valid(int device) { return device >= 0 && device < state().settings.devices; }

std::string report() {
    State& s = state();
    const Counters& c = s.counters;
    std::stringstream out;
    out << "{";
    const std::pair<const char*, uint64_t> numbers[] = {
        {"launches", c.launches}, {"launch_calls", c.launch_calls}, {"graph_launches", c.graph_launches}, {"copies_h2d", c.copies_h2d},
        {"copies_d2h", c.copies_d2h}, {"copies_d2d", c.copies_d2d}, {"bytes_h2d", c.bytes_h2d}, {"bytes_d2h", c.bytes_d2h},
        {"bytes_d2d", c.bytes_d2d}, {"allocations", c.allocations}, {"host_allocations", c.host_allocations}, {"frees", c.frees},
        {"after_ready", c.after_ready}, {"modules", c.modules}, {"graphs", c.graphs}, {"synchronizations", c.synchronizations},
        {"weight_bytes", emulation_weight_bytes(0)},
    };
    for (auto& one : numbers) out << '"' << one.first << "\": " << one.second << ", ";
    auto list = [&](const char* name, const std::vector<uint64_t>& values) {
        out << '"' << name << "\": [";
        for (size_t i = 0; i < values.size(); i++) out << (i ? ", " : "") << values[i];
        out << "], ";
    };
    list("used", s.used);
    list("peak", s.peak);
    uint64_t pinned = 0;
    for (auto& one : s.pinned) pinned += one.second.bytes;
    out << "\"pinned\": " << pinned << ", \"kernels\": {";
    const char* between = "";
    for (auto& one : c.kernels) { out << between << '"' << one.first << "\": " << one.second; between = ", "; }
    out << "}, \"error\": \"";
    for (char letter : s.error) if (letter == '"' || letter == '\\') out << '\\' << letter; else if (letter == '\n') out << "\\n"; else out << letter;
    out << "\"}";
    return out.str();
}

void write_report() {
    const char* path = getenv("GGRUN_STANDIN_REPORT");
    if (!path) return;
    if (FILE* file = fopen(path, "w")) { fputs(report().c_str(), file); fclose(file); }
}

}  // namespace standin

using namespace standin;

// for tests, through ctypes

ENTRY standin_set(const char* name, const char* value) { HOLD; return set(state().settings, name, value) ? SUCCESS : INVALID_VALUE; }
ENTRY standin_ready(int on) { HOLD; state().ready = on; return SUCCESS; }
// counters to zero, a kernel's fault forgotten, settings as the environment has them; memory stays as it is
ENTRY standin_reset() {
    HOLD;
    State& s = state();
    for (Stream* stream : s.streams) stream->queue.clear();
    s.counters = Counters{};
    s.peak = s.used;
    s.ready = false;
    s.broken = SUCCESS;
    s.error.clear();
    s.settings = from_environment();
    emulation_weight_bytes(1);
    emulation_clear();
    return SUCCESS;
}
ENTRY standin_report(char* into, size_t size) {       // JSON; A: how long it is
    HOLD;
    const std::string text = report();
    if (into && size) snprintf(into, size, "%s", text.c_str());
    return (int)text.size();
}

// the driver

ENTRY cuInit(unsigned) {
    HOLD;
    if (state().settings.fail_init) return (int)state().settings.fail_init;
    if (!state().settings.devices) return NO_DEVICE;
    state().initialized = true;
    return SUCCESS;
}
ENTRY cuDriverGetVersion(int* version) { *version = (int)state().settings.driver; return SUCCESS; }
ENTRY cuDeviceGetCount(int* n) { if (!state().initialized) return NOT_INITIALIZED; *n = (int)state().settings.devices; return SUCCESS; }
ENTRY cuDeviceGet(int* device, int ordinal) { if (!state().initialized) return NOT_INITIALIZED; if (!valid(ordinal)) return INVALID_DEVICE; *device = ordinal; return SUCCESS; }
ENTRY cuDeviceGetName(char* name, int size, int device) {
    if (!valid(device)) return INVALID_DEVICE;
    snprintf(name, (size_t)size, "stand-in GPU");
    return SUCCESS;
}
ENTRY cuDeviceTotalMem_v2(size_t* n, int device) { if (!valid(device)) return INVALID_DEVICE; *n = (size_t)memory_of(device); return SUCCESS; }
ENTRY cuDeviceComputeCapability(int* major, int* minor, int device) {
    if (!valid(device)) return INVALID_DEVICE;
    *major = (int)capability_of(device) / 10;
    *minor = (int)capability_of(device) % 10;
    return SUCCESS;
}
ENTRY cuDeviceGetPCIBusId(char* text, int size, int device) { snprintf(text, (size_t)size, "0000:%02x:00.0", device + 1); return SUCCESS; }
ENTRY cuDeviceGetByPCIBusId(int* device, const char* text) { *device = (int)strtol(text + 5, nullptr, 16) - 1; return valid(*device) ? SUCCESS : INVALID_VALUE; }
ENTRY cuDeviceCanAccessPeer(int* can, int, int) { *can = 0; return SUCCESS; }
ENTRY cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (!valid(device)) return INVALID_DEVICE;
    const int capability = (int)capability_of(device);
    switch (attribute) {
        case 1: *value = 1024; break;                                   // threads a block
        case 2: case 3: *value = 1024; break;
        case 4: *value = 64; break;
        case 5: *value = 0x7fffffff; break;
        case 6: case 7: *value = 65535; break;
        case 8: *value = 49152; break;                                  // shared bytes a block, without asking
        case 10: *value = 32; break;
        case 12: *value = 65536; break;                                 // registers a block
        case 13: *value = 1500000; break;                               // kHz
        case 16: *value = (int)state().settings.processors; break;
        case 18: *value = 0; break;                                     // integrated
        case 19: *value = 1; break;                                     // can map host memory
        case 31: case 41: *value = 1; break;                            // concurrent kernels, unified addresses
        case 36: *value = 5000000; break;                               // kHz of memory
        case 37: *value = 256; break;                                   // bits of the memory bus
        case 38: *value = 4 << 20; break;                               // L2
        case 39: *value = 1536; break;                                  // threads a multiprocessor
        case 40: *value = 2; break;                                     // copy engines
        case 75: *value = capability / 10; break;
        case 76: *value = capability % 10; break;
        case 81: *value = 102400; break;                                // shared bytes a multiprocessor
        case 97:                                                        // shared bytes a block may ask for
            *value = capability >= 120 ? 101376 : capability >= 90 ? 232448 : capability == 86 || capability == 89 ? 101376 : capability >= 80 ? 166912 : capability == 75 ? 65536 : 49152;
            break;
        default: *value = 0;
    }
    return SUCCESS;
}

static Result open(Context* context) {               // the driver's own memory
    State& s = state();
    if (!context->retained && (int64_t)free_of(context->device) < s.settings.context_bytes) return OUT_OF_MEMORY;
    context->retained++;
    return SUCCESS;
}
ENTRY cuDevicePrimaryCtxRetain(void** context, int device) {
    HOLD;
    if (!state().initialized) return NOT_INITIALIZED;
    if (!valid(device)) return INVALID_DEVICE;
    prepare(device);
    if (Result r = open(state().primary[device])) return r;
    *context = state().primary[device];
    return SUCCESS;
}
static Result close(Context* context) {
    if (!context || !context->retained) return INVALID_CONTEXT;
    if (!--context->retained) context->modules = 0;
    return SUCCESS;
}
ENTRY cuDevicePrimaryCtxRelease_v2(int device) {
    HOLD;
    if (!valid(device) || (int)state().primary.size() <= device) return INVALID_CONTEXT;
    return close(state().primary[device]);
}
ENTRY cuCtxCreate_v2(void** context, unsigned, int device) {
    HOLD;
    if (!state().initialized) return NOT_INITIALIZED;
    if (!valid(device)) return INVALID_DEVICE;
    prepare(device);
    Context* made = fresh(device, false);
    if (Result r = open(made)) return r;
    contexts.push_back(made);
    *context = made;
    return SUCCESS;
}
ENTRY cuCtxDetach(void* context) { HOLD; return close((Context*)context); }
ENTRY cuCtxDestroy_v2(void* context) { return cuCtxDetach(context); }
ENTRY cuCtxPushCurrent_v2(void* context) { contexts.push_back((Context*)context); return SUCCESS; }
ENTRY cuCtxPopCurrent_v2(void** context) {
    if (contexts.empty()) return INVALID_CONTEXT;
    if (context) *context = contexts.back();
    contexts.pop_back();
    return SUCCESS;
}
ENTRY cuCtxGetCurrent(void** context) { *context = current(); return SUCCESS; }
ENTRY cuCtxSetCurrent(void* context) { if (!contexts.empty()) contexts.pop_back(); if (context) contexts.push_back((Context*)context); return SUCCESS; }
ENTRY cuCtxGetDevice(int* device) { if (!current()) return INVALID_CONTEXT; *device = current()->device; return SUCCESS; }
ENTRY cuCtxGetApiVersion(void*, unsigned* version) { *version = 3020; return SUCCESS; }
ENTRY cuCtxSynchronize() { HOLD; CHECK_CONTEXT; state().counters.synchronizations++; if (capturing()) return STREAM_CAPTURE_UNSUPPORTED; return drain_all(); }
ENTRY cuCtxGetLimit(size_t* value, int) { *value = 0; return SUCCESS; }
ENTRY cuCtxSetLimit(int, size_t) { return SUCCESS; }

static const std::pair<int, std::pair<const char*, const char*>> ERRORS[] = {
    {SUCCESS, {"CUDA_SUCCESS", "no error"}},
    {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {NOT_INITIALIZED, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {NO_DEVICE, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {INVALID_IMAGE, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {INVALID_HANDLE, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {NOT_READY, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {LAUNCH_OUT_OF_RESOURCES, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
    {HOST_MEMORY_ALREADY_REGISTERED, {"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"}},
    {HOST_MEMORY_NOT_REGISTERED, {"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"}},
    {LAUNCH_FAILED, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {803, {"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"}},
    {NOT_SUPPORTED, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported by the stand-in driver"}},
    {STREAM_CAPTURE_UNSUPPORTED, {"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"}},
    {STREAM_CAPTURE_INVALIDATED, {"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}},
    {ILLEGAL_STATE, {"CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"}},
    {DEADLOCK, {"CUDA_ERROR_UNKNOWN", "the streams wait for each other for ever"}},
};
ENTRY cuGetErrorString(int r, const char** text) {
    if (r == LAUNCH_FAILED && !state().error.empty()) return *text = state().error.c_str(), SUCCESS;     // says which kernel and why
    for (auto& e : ERRORS) if (e.first == r) return *text = e.second.second, SUCCESS;
    *text = "unknown error";
    return INVALID_VALUE;
}
ENTRY cuGetErrorName(int r, const char** text) {
    for (auto& e : ERRORS) if (e.first == r) return *text = e.second.first, SUCCESS;
    *text = "CUDA_ERROR_UNKNOWN";
    return INVALID_VALUE;
}

// the real NVRTC asks a driver that it finds in its process for private functions, to keep what it compiles; it does without them when told so
ENTRY cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return NOT_FOUND;
}

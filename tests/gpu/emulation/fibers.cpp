// Runs CUDA kernels on a CPU: an OS thread runs one block at a time, every CUDA thread of it is a fiber, switched only where threads meet
// (barriers, warp collectives). What a GPU leaves undefined is an error here, with the kernel's name: barriers that not all threads reach,
// collectives met at different lines, accesses outside memory or not aligned.
#include "fibers.h"

#include <algorithm>
#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __x86_64__
extern "C" __attribute__((visibility("hidden"))) void emulation_switch(void** save, void* load);
asm(R"(.text
.globl emulation_switch
.hidden emulation_switch
.type emulation_switch,@function
emulation_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp,(%rdi)
 movq %rsi,%rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
)");
#endif

namespace emulation {

__thread Block* block __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

constexpr size_t STACK = 128 * 1024;
constexpr unsigned char POISON = 0xCB;
constexpr size_t THREADS_WORTH_AN_OS_THREAD = 16384;

#ifdef __x86_64__
struct Context { void* stack; };
#else
struct Context { ucontext_t registers; };
#endif

enum State : uint8_t { READY, AT_BARRIER, AT_COLLECTIVE, RETURNED };

struct Copy { void* to; unsigned char bytes[16]; int age; size_t size; };      // age: commits since, -1 before the first

struct Fiber : Thread {
    Context context;
    State state;
    int warp;
    const char* file; int line;      // where it waits
    unsigned mask; void* brought; Collective what;    // the collective
    std::vector<Copy> copies;
};

struct Running : Block {             // an OS thread's block
    std::vector<Fiber> fibers;
    std::vector<unsigned char> dynamic;
    Context scheduler;
    char* stacks = nullptr; size_t n_stacks = 0;
    int alive = 0, arrived = 0, truths = 0, verdict = 0;
    const char* kernel = "?"; void (*body)(void*) = nullptr; void* arguments = nullptr;
    sigjmp_buf escape;
    ~Running() { if (stacks) munmap(stacks, n_stacks * STACK); }
};

std::mutex error_lock;
std::string error_text;
std::atomic<bool> stop{false};
std::atomic<uint64_t> weight_bytes{0};
std::atomic<unsigned> order_setting{[] { const char* text = getenv("GGRUN_EMULATION_ORDER"); return text ? (unsigned)atoi(text) : 0u; }()};

Running& running() { return *static_cast<Running*>(block); }
Fiber& current() { return *static_cast<Fiber*>(block->thread); }

void record(const char* text) {
    std::lock_guard<std::mutex> hold(error_lock);
    if (error_text.empty()) error_text = text;
    stop = true;
}

void report(char* into, size_t size, const char* what) {
    Running& b = running();
    const dim3& t = b.thread ? b.thread->index : dim3(0, 0, 0);
    snprintf(into, size, "%s: %s in block (%u,%u,%u), thread (%u,%u,%u)", b.kernel, what, b.index.x, b.index.y, b.index.z, t.x, t.y, t.z);
}

void to_scheduler() {
    Fiber& f = current();
#ifdef __x86_64__
    emulation_switch(&f.context.stack, running().scheduler.stack);
#else
    swapcontext(&f.context.registers, &running().scheduler.registers);
#endif
}

void to_fiber(Running& b, Fiber& f) {
    b.thread = &f;
#ifdef __x86_64__
    emulation_switch(&b.scheduler.stack, f.context.stack);
#else
    swapcontext(&b.scheduler.registers, &f.context.registers);
#endif
}

// all lanes of the mask that have not returned are there: serve them
void serve(Running& b, Fiber& one) {
    void* lanes[32] = {};
    const unsigned mask = one.mask;
    const size_t first = (size_t)one.warp * 32, last = std::min(first + 32, b.fibers.size());
    for (size_t i = first; i < last; i++) {
        Fiber& f = b.fibers[i];
        if (mask >> f.lane & 1 && f.state != RETURNED) lanes[f.lane] = f.brought;
    }
    one.what(lanes, mask);
    for (size_t i = first; i < last; i++)
        if (lanes[b.fibers[i].lane]) b.fibers[i].state = READY;
}

bool complete(Running& b, const Fiber& f) {
    if (f.state != AT_COLLECTIVE) return false;
    const size_t first = (size_t)f.warp * 32, last = std::min(first + 32, b.fibers.size());
    for (size_t i = first; i < last; i++) {
        const Fiber& g = b.fibers[i];
        if (f.mask >> g.lane & 1 && g.state != RETURNED && g.state != AT_COLLECTIVE) return false;
    }
    return true;
}

void fiber_main() {
    Running& b = running();
    b.body(b.arguments);
    Fiber& f = current();
    f.state = RETURNED;
    b.alive--;
    for (;;) to_scheduler();
}

void start(Running& b, dim3 index) {
    b.index = index;
    b.alive = (int)b.fibers.size();
    b.arrived = b.truths = 0;
    memset(b.dynamic.data(), POISON, b.dynamic.size());
    for (size_t i = 0; i < b.fibers.size(); i++) {
        Fiber& f = b.fibers[i];
        f.state = READY;
        f.lane = (int)(i % 32);
        f.warp = (int)(i / 32);
        f.index = dim3((unsigned)(i % b.threads.x), (unsigned)(i / b.threads.x % b.threads.y), (unsigned)(i / b.threads.x / b.threads.y));
        f.copies.clear();
        char* stack = b.stacks + i * STACK;
#ifdef __x86_64__
        void** top = (void**)(stack + STACK - 64);
        *--top = nullptr;
        *--top = (void*)fiber_main;
        for (int k = 0; k < 6; k++) *--top = nullptr;
        f.context.stack = top;
#else
        getcontext(&f.context.registers);
        f.context.registers.uc_stack.ss_sp = stack;
        f.context.registers.uc_stack.ss_size = STACK;
        f.context.registers.uc_link = nullptr;
        makecontext(&f.context.registers, fiber_main, 0);
#endif
    }
}

const char* const MEETING[] = {"", "__syncthreads", "a warp collective", ""};

void stuck(Running& b) {            // nobody can go on
    for (Fiber& f : b.fibers)
        if (f.state == AT_COLLECTIVE || f.state == AT_BARRIER) {
            b.thread = &f;
            char what[400];
            int others = 0;
            for (Fiber& g : b.fibers) others += g.state != f.state || g.line != f.line;
            snprintf(what, sizeof what, "%d of %zu threads never come to %s at %s:%d; it waits there", others, b.fibers.size(), MEETING[f.state], f.file, f.line);
            fail("%s", what);
        }
}

uint32_t next(uint32_t& state) { return state = state * 1664525u + 1013904223u, state >> 8; }

void run_block(Running& b, dim3 index, unsigned order, std::vector<unsigned>& turn) {
    start(b, index);
    const size_t n = b.fibers.size();
    uint32_t random = order * 2654435761u + index.x * 40503u + index.y * 977u + index.z * 31u + 1;
    while (b.alive) {
        if (order > 1) for (size_t i = n - 1; i > 0; i--) std::swap(turn[i], turn[next(random) % (i + 1)]);
        bool any = false;
        for (size_t k = 0; k < n; k++) {
            Fiber& f = b.fibers[order == 0 ? k : order == 1 ? n - 1 - k : turn[k]];
            if (f.state != READY) continue;
            any = true;
            to_fiber(b, f);
        }
        if (any || !b.alive) continue;
        // lanes that have returned count as arrived at warp collectives (CUDA: "all non-exited threads named in mask"), never at __syncthreads
        for (Fiber& f : b.fibers) if (complete(b, f)) { serve(b, f); any = true; break; }
        if (!any) stuck(b);
    }
}

// static shared memory is thread_local in a kernel's library: its bytes in this OS thread
struct Range { const void* inside; unsigned char* start; size_t size; };
int find_static_shared(dl_phdr_info* info, size_t, void* data) {
    Range& range = *(Range*)data;
    if (!info->dlpi_tls_data) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& segment = info->dlpi_phdr[i];
        auto* start = (unsigned char*)info->dlpi_tls_data;
        if (segment.p_type != PT_TLS || range.inside < start || range.inside >= start + segment.p_memsz) continue;
        range.start = start;
        range.size = segment.p_memsz;
        return 1;
    }
    return 0;
}

struct sigaction before_segv, before_bus;
void on_signal(int number, siginfo_t* info, void* context) {
    if (block) {
        char what[200], text[600];
        snprintf(what, sizeof what, "access outside memory at address %p", info->si_addr);
        report(text, sizeof text, what);
        record(text);
        siglongjmp(running().escape, 1);
    }
    struct sigaction& before = number == SIGSEGV ? before_segv : before_bus;
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) before.sa_handler(number);
    else { signal(number, SIG_DFL); raise(number); }
}

void catch_signals() {
    struct sigaction action{}, now{};
    sigaction(SIGSEGV, nullptr, &now);
    if (now.sa_sigaction == on_signal) return;
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
}

unsigned os_threads() {
    static const unsigned n = [] {
        const char* text = getenv("GGRUN_EMULATION_THREADS");
        return text ? (unsigned)std::max(1, atoi(text)) : std::max(1u, std::thread::hardware_concurrency());
    }();
    return n;
}

}  // namespace

void fail(const char* format, ...) {
    char what[480], text[600];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    report(text, sizeof text, what);
    record(text);
    siglongjmp(running().escape, 1);
}

int barrier(bool predicate, int line, const char* file) {
    Running& b = running();
    Fiber& f = current();
    for (Fiber& g : b.fibers) {                 // the first that waits speaks for all
        if (g.state == RETURNED) fail("__syncthreads at %s:%d after thread (%u,%u,%u) has returned", file, line, g.index.x, g.index.y, g.index.z);
        if (g.state != AT_BARRIER) continue;
        if (g.line != line || strcmp(g.file, file)) fail("__syncthreads at %s:%d while others wait at %s:%d", file, line, g.file, g.line);
        break;
    }
    b.truths += predicate;
    f.line = line;
    f.file = file;
    if (++b.arrived < (int)b.fibers.size()) {
        f.state = AT_BARRIER;
        to_scheduler();
        return b.verdict;
    }
    b.verdict = b.truths;
    b.arrived = b.truths = 0;
    for (Fiber& g : b.fibers) if (g.state == AT_BARRIER) g.state = READY;
    return b.verdict;
}

void collective(unsigned mask, void* mine, Collective what, int line, const char* file) {
    Running& b = running();
    Fiber& f = current();
    if (!(mask >> f.lane & 1)) fail("lane %d is not in its own mask %08x at %s:%d", f.lane, mask, file, line);
    f.brought = mine;
    f.what = what;
    f.mask = mask;
    f.line = line;
    f.file = file;
    bool all = true;
    const size_t first = (size_t)f.warp * 32, last = std::min(first + 32, b.fibers.size());
    for (size_t i = first; i < last; i++) {
        Fiber& g = b.fibers[i];
        if (&g == &f || !(mask >> g.lane & 1) || g.state == RETURNED) continue;
        if (g.state != AT_COLLECTIVE) { all = false; continue; }
        if (g.mask != mask || g.line != line || strcmp(g.file, file))
            fail("lane %d is at %s:%d (mask %08x), lane %d at %s:%d (mask %08x)", f.lane, file, line, mask, g.lane, g.file, g.line, g.mask);
    }
    if (all) return serve(b, f);
    f.state = AT_COLLECTIVE;
    to_scheduler();
}

void copy_async(void* to, const void* from, size_t size) {
    if ((uintptr_t)to % size || (uintptr_t)from % size) fail("cp.async of %zu bytes from %p to %p: not aligned", size, from, to);
    Copy copy{to, {}, -1, size};
    memcpy(copy.bytes, from, size);
    memset(to, POISON, size);
    current().copies.push_back(copy);
}

void copy_commit() {
    for (Copy& copy : current().copies) copy.age++;
}

void copy_wait(int pending_groups) {
    auto& copies = current().copies;
    size_t kept = 0;
    for (Copy& copy : copies)
        if (copy.age >= pending_groups) memcpy(copy.to, copy.bytes, copy.size);
        else copies[kept++] = copy;
    copies.resize(kept);
}

int launch(const char* name, void (*body)(void*), void* arguments, const unsigned* grid, const unsigned* threads, size_t shared, void* (*touch)()) {
    const size_t n = (size_t)threads[0] * threads[1] * threads[2], total = (size_t)grid[0] * grid[1] * grid[2];
    stop = false;
    if (!n || n > 1024 || threads[2] > 64 || !total || grid[1] > 65535 || grid[2] > 65535 || grid[0] > 0x7fffffff) {
        record((std::string(name) + ": a grid or block no GPU accepts").c_str());
        return 1;
    }
    const unsigned order = order_setting;
    std::atomic<size_t> next_block{0};
    size_t stride = order == 1 ? total - 1 : order > 1 ? order * 2654435761u % total : 1;
    auto divides = [](size_t a, size_t b) { while (b) { size_t r = a % b; a = b; b = r; } return a != 1; };
    while (total > 1 && (stride == 0 || divides(stride, total))) stride++;
    auto work = [&] {
        static thread_local Running b;
        static thread_local std::vector<unsigned> turn;
        catch_signals();
        b.kernel = name; b.body = body; b.arguments = arguments;
        b.threads = dim3(threads[0], threads[1], threads[2]);
        b.grid = dim3(grid[0], grid[1], grid[2]);
        b.fibers.resize(n);
        b.dynamic.resize(shared + 15);
        b.shared = (unsigned char*)(((uintptr_t)b.dynamic.data() + 15) & ~(uintptr_t)15);
        b.shared_bytes = shared;
        b.weight_bytes = 0;
        b.thread = nullptr;
        turn.resize(n);
        for (size_t i = 0; i < n; i++) turn[i] = (unsigned)i;
        if (b.n_stacks < n) {
            if (b.stacks) munmap(b.stacks, b.n_stacks * STACK);
            b.stacks = (char*)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            b.n_stacks = n;
        }
        Range fixed{touch(), nullptr, 0};
        dl_iterate_phdr(find_static_shared, &fixed);
        block = &b;
        if (!sigsetjmp(b.escape, 1))
            for (size_t i; !stop && (i = next_block.fetch_add(1)) < total;) {
                if (fixed.start) memset(fixed.start, POISON, fixed.size);
                const size_t at = (order == 1 ? total - 1 + i * stride : i * stride) % total;
                run_block(b, dim3((unsigned)(at % grid[0]), (unsigned)(at / grid[0] % grid[1]), (unsigned)(at / grid[0] / grid[1])), order, turn);
            }
        block = nullptr;
        weight_bytes += b.weight_bytes;
    };
    const size_t helpers = std::min<size_t>(std::min<size_t>(os_threads(), total), 1 + n * total / THREADS_WORTH_AN_OS_THREAD) - 1;
    std::vector<std::thread> team;
    for (size_t i = 0; i < helpers; i++) team.emplace_back(work);
    work();
    for (auto& member : team) member.join();
    return stop ? 1 : 0;
}

}  // namespace emulation

extern "C" {

const char* emulation_error() {
    static thread_local std::string copy;
    std::lock_guard<std::mutex> hold(emulation::error_lock);
    return (copy = emulation::error_text).c_str();
}

void emulation_clear() {
    std::lock_guard<std::mutex> hold(emulation::error_lock);
    emulation::error_text.clear();
}

void emulation_order(unsigned order) { emulation::order_setting = order; }

uint64_t emulation_weight_bytes(int reset) { return reset ? emulation::weight_bytes.exchange(0) : emulation::weight_bytes.load(); }

// called by code that g++ compiled with -fsanitize=alignment,shift,...; kernels are linked without its library
struct Place { const char* file; uint32_t line, column; };
void __ubsan_handle_type_mismatch_v1_abort(Place* place, uintptr_t address) {
    emulation::fail("access at address %p is not aligned, or null (%s:%u)", (void*)address, place->file, place->line);
}
void __ubsan_handle_type_mismatch_v1(Place* place, uintptr_t address) { __ubsan_handle_type_mismatch_v1_abort(place, address); }

}

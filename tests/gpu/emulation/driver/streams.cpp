// Streams, events, graphs. A stream holds its work until somebody waits for it: what needs an event and has none reads stale or poisoned data.
#include <chrono>

#include "state.h"

namespace standin {

Stream* stream_of(void* handle) {
    // 0, 1 (legacy) and 2 (per thread): the context's standard stream
    return (uintptr_t)handle <= 2 ? current()->standard : (Stream*)handle;
}

static Result step(Stream* stream) {          // the first piece of work
    State& s = state();
    if (stream->running) return DEADLOCK;
    stream->running = true;
    Result result = SUCCESS;
    Work& work = stream->queue.front();
    while (work.needs && work.needs->reached < work.mark && !result) {
        Stream* other = work.needs->where;
        if (!other || other->queue.empty()) break;              // recorded in a stream that is no more
        result = step(other);
    }
    if (!result) {
        std::function<Result()> act = std::move(work.act);
        stream->queue.pop_front();
        if (act) result = act();
    }
    stream->running = false;
    if (result && !s.broken) s.broken = result;
    return result;
}

Result drain(Stream* stream) {
    while (!state().broken && !stream->queue.empty()) step(stream);
    return state().broken;
}
Result drain_all() {
    for (size_t i = 0; i < state().streams.size(); i++) drain(state().streams[i]);
    return state().broken;
}
bool capturing() {
    for (Stream* stream : state().streams) if (stream->capture) return true;
    return false;
}
static Result add(Stream* stream, Work work) {
    if (stream->capture) return stream->capture->work.push_back(std::move(work)), SUCCESS;
    stream->queue.push_back(std::move(work));
    return state().settings.eager ? drain(stream) : SUCCESS;
}
Result push(void* handle, std::function<Result()> act) { return add(stream_of(handle), Work{std::move(act)}); }
Result now(std::function<Result()> act) {
    if (capturing()) return STREAM_CAPTURE_UNSUPPORTED;
    state().counters.synchronizations++;
    if (Result r = drain_all()) return r;
    return act();
}

}  // namespace standin

using namespace standin;

ENTRY cuStreamCreate(void** handle, unsigned) {
    HOLD; CHECK_CONTEXT;
    if (Result r = taken()) return r;
    auto* stream = new Stream{current()};
    state().streams.push_back(stream);
    *handle = stream;
    return SUCCESS;
}
ENTRY cuStreamCreateWithPriority(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }
ENTRY cuStreamDestroy_v2(void* handle) {
    HOLD;
    auto& streams = state().streams;
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == handle) {
            drain(streams[i]);
            streams.erase(streams.begin() + (long)i);
            return SUCCESS;                                       // the object stays: events may still name it
        }
    return INVALID_HANDLE;
}
ENTRY cuStreamSynchronize(void* handle) {
    HOLD; CHECK_CONTEXT;
    if (stream_of(handle)->capture) return STREAM_CAPTURE_UNSUPPORTED;
    state().counters.synchronizations++;
    return drain(stream_of(handle));
}
ENTRY cuStreamQuery(void* handle) {        // asking lets one piece of work happen, so that polling ends
    HOLD; CHECK_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream->queue.empty()) return SUCCESS;
    if (Result r = step(stream)) return r;
    return NOT_READY;
}
ENTRY cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) { HOLD; CHECK_CONTEXT; return push(handle, [=] { function(data); return SUCCESS; }); }

static double milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

ENTRY cuEventCreate(void** handle, unsigned) { HOLD; CHECK_CONTEXT; *handle = new Event; return SUCCESS; }
ENTRY cuEventDestroy_v2(void* handle) { HOLD; drain_all(); delete (Event*)handle; return SUCCESS; }
ENTRY cuEventRecord(void* handle, void* stream) {
    HOLD; CHECK_CONTEXT;
    auto* event = (Event*)handle;
    Stream* where = stream_of(stream);
    if (where->capture) return event->captured_in = where, SUCCESS;
    event->captured_in = nullptr;
    event->where = where;
    const uint64_t mark = ++event->recorded;
    return push(stream, [=] { event->when = milliseconds(); event->reached = mark; return SUCCESS; });
}
ENTRY cuStreamWaitEvent(void* stream, void* handle, unsigned) {
    HOLD; CHECK_CONTEXT;
    auto* event = (Event*)handle;
    Stream* waits = stream_of(stream);
    if (event->captured_in) {                                     // joins the capture; its work comes after what was captured so far
        if (!event->captured_in->capture) return STREAM_CAPTURE_INVALIDATED;
        waits->capture = event->captured_in->capture;
        return SUCCESS;
    }
    if (waits->capture) return STREAM_CAPTURE_UNSUPPORTED;
    Work work;
    work.needs = event;
    work.mark = event->recorded;
    return add(waits, work);
}
ENTRY cuEventSynchronize(void* handle) {
    HOLD; CHECK_CONTEXT;
    auto* event = (Event*)handle;
    state().counters.synchronizations++;
    while (event->reached < event->recorded && !event->where->queue.empty()) if (Result r = step(event->where)) return r;
    return state().broken;
}
ENTRY cuEventQuery(void* handle) {
    HOLD; CHECK_CONTEXT;
    auto* event = (Event*)handle;
    if (event->reached >= event->recorded) return SUCCESS;
    if (Result r = step(event->where)) return r;
    return NOT_READY;
}
// what g++'s kernels took: says nothing about a GPU
ENTRY cuEventElapsedTime(float* ms, void* from, void* to) { *ms = (float)(((Event*)to)->when - ((Event*)from)->when); return SUCCESS; }

ENTRY cuStreamBeginCapture_v2(void* handle, int) {
    HOLD; CHECK_CONTEXT;
    Stream* stream = stream_of(handle);
    if (stream == current()->standard) return STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture = new Graph;
    stream->owns_capture = true;
    return SUCCESS;
}
ENTRY cuStreamEndCapture(void* handle, void** graph) {
    HOLD; CHECK_CONTEXT;
    Stream* stream = stream_of(handle);
    *graph = nullptr;
    if (!stream->capture || !stream->owns_capture) return ILLEGAL_STATE;
    Graph* captured = stream->capture;
    for (Stream* other : state().streams) if (other->capture == captured) other->capture = nullptr;
    stream->owns_capture = false;
    *graph = captured;
    return SUCCESS;
}
ENTRY cuStreamIsCapturing(void* handle, int* status) { HOLD; *status = stream_of(handle)->capture ? 1 : 0; return SUCCESS; }
ENTRY cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    HOLD; CHECK_CONTEXT;
    if (Result r = taken()) return r;
    state().counters.graphs++;
    *executable = new Graph(*(Graph*)graph);
    return SUCCESS;
}
ENTRY cuGraphUpload(void*, void*) { return SUCCESS; }
ENTRY cuGraphLaunch(void* executable, void* handle) {
    HOLD; CHECK_CONTEXT;
    state().counters.graph_launches++;
    for (const Work& work : ((Graph*)executable)->work) if (Result r = add(stream_of(handle), work)) return r;
    return SUCCESS;
}
ENTRY cuGraphExecDestroy(void* executable) { HOLD; drain_all(); delete (Graph*)executable; return SUCCESS; }
ENTRY cuGraphDestroy(void* graph) { HOLD; delete (Graph*)graph; return SUCCESS; }
ENTRY cuGraphGetNodes(void* graph, void**, size_t* n) { HOLD; *n = ((Graph*)graph)->work.size(); return SUCCESS; }

// A libnvrtc.so.12 that compiles with g++: the "cubin" is a shared library that the stand-in libcuda can load. Only the entry points that
// ggrun uses. SHIM is the folder of cuda_on_cpu.h, RUNTIME that of libggrun_emulation.so, KEPT where compiled kernels are kept.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

enum Result { SUCCESS = 0, INVALID_INPUT = 3, INVALID_OPTION = 5, COMPILATION = 6, INTERNAL = 11 };
struct Program {
    std::string text, name, log, image;
    std::vector<std::pair<std::string, std::string>> headers;      // include name, text
};

const int ARCHITECTURES[] = {50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90, 100, 101, 103, 120, 121};

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}
void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

uint64_t hash(const std::string& text, uint64_t seed) {
    uint64_t h = 14695981039346656037ull ^ seed;
    for (unsigned char c : text) h = (h ^ c) * 1099511628211ull, h ^= h >> 29;
    return h;
}

std::string quoted(const std::string& word) {
    std::string out = "'";
    for (char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return out + "'";
}

// A: the command succeeded; what it said is added to the log
bool run(const std::string& command, std::string& log) {
    FILE* pipe = popen((command + " 2>&1").c_str(), "r");
    if (!pipe) return log += "cannot run g++", false;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, pipe)) > 0;) log.append(part, n);
    const int status = pclose(pipe);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// preprocess, find the kernels by the attribute that __global__ stands for, add a way in for each, compile
bool build(Program& p, const std::string& folder, const std::string& defines, const std::string& target) {
    for (auto& header : p.headers) write(folder + "/" + header.first, header.second);
    const std::string source = folder + "/" + p.name + ".cpp";
    write(source, p.text);
    const std::string flags = " -std=c++17 " FLAGS " " + defines;
    const std::string to_text = CXX + flags + " -I " + quoted(folder) + " -I " + quoted(SHIM "/include") + " -I " + quoted(SHIM) +
                                " -include cuda_on_cpu.h -E -o " + quoted(folder + "/all.ii") + " " + quoted(source);
    if (!run(to_text, p.log)) return false;
    std::string all = read(folder + "/all.ii");
    static const std::regex kernel(R"re(extern\s+"C"\s+__attribute__\(\(visibility\("default"\)\)\)\s*void\s+(\w+)\s*\()re");
    std::set<std::string> names;
    for (std::sregex_iterator i(all.begin(), all.end(), kernel), end; i != end; ++i) names.insert((*i)[1]);
    if (names.empty()) return p.log += p.name + ": no kernel in it (extern \"C\" __global__ void name(...))\n", false;
    all += "\nstatic void* emulation_touch() { static thread_local int here; return &here; }\n";
    for (auto& name : names)
        all += "extern \"C\" __attribute__((visibility(\"default\"))) int emulated_" + name +
               "(const char* bytes, size_t size, const unsigned* grid, const unsigned* threads, size_t shared) {"
               " return emulation::launch_packed(\"" + name + "\", " + name + ", bytes, size, grid, threads, shared, emulation_touch); }\n";
    write(folder + "/all.ii", all);
    const std::string object = folder + "/all.o", to_object = CXX + flags + " -fpreprocessed -c -o " + quoted(object) + " " + quoted(folder + "/all.ii");
    if (!run(to_object, p.log)) return false;
    // linked without -fsanitize: libggrun_emulation.so has the handlers
    return run(std::string(CXX) + " -shared -o " + quoted(target) + " " + quoted(object) + " -L " + quoted(RUNTIME) + " -lggrun_emulation -Wl,-rpath," +
               quoted(RUNTIME), p.log);
}

int compile(Program& p, int n_options, const char* const* options) {
    std::string defines, architecture;
    for (int i = 0; i < n_options; i++) {
        const std::string option = options[i];
        if (option.rfind("-arch=", 0) == 0) architecture = option.substr(6);
        else if (option.rfind("--gpu-architecture=", 0) == 0) architecture = option.substr(19);
        else if (option.rfind("-D", 0) == 0) defines += quoted(option) + " ";
    }
    const size_t digits = architecture.find_first_of("0123456789");
    const int number = digits == std::string::npos ? 0 : atoi(architecture.c_str() + digits);
    bool known = false;
    for (int a : ARCHITECTURES) known |= a == number;
    if (!known) return p.log = "nvrtc: error: invalid value for --gpu-architecture (-arch): " + architecture + "\n", INVALID_OPTION;
    defines += "-D__CUDA_ARCH__=" + std::to_string(number * 10) + " -D__CUDACC_RTC__";

    std::string all = defines + '\0' + p.name + '\0' + p.text;
    for (auto& header : p.headers) all += '\0' + header.first + '\0' + header.second;
    char key[48];
    snprintf(key, sizeof key, "%016llx%016llx", (unsigned long long)hash(all, 0), (unsigned long long)hash(all, 0x9e3779b97f4a7c15ull));
    const std::string target = std::string(KEPT) + "/" + p.name + "." + key + ".so";
    if (access(target.c_str(), R_OK) != 0) {
        char folder[] = "/tmp/ggrun-nvrtc-XXXXXX";
        if (!mkdtemp(folder)) return INTERNAL;
        static std::atomic<int> serial{0};
        const std::string fresh = target + "." + std::to_string(getpid()) + "." + std::to_string(serial++);
        const bool good = build(p, folder, defines, fresh);
        run(std::string("rm -rf ") + folder, p.log);
        if (!good) return unlink(fresh.c_str()), COMPILATION;
        rename(fresh.c_str(), target.c_str());
    }
    p.image = read(target);
    return SUCCESS;
}

size_t with_end(const std::string& text) { return text.size() + 1; }

}  // namespace

extern "C" {

const char* nvrtcGetErrorString(int r) {
    switch (r) {
        case SUCCESS: return "NVRTC_SUCCESS";
        case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
        case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
        case COMPILATION: return "NVRTC_ERROR_COMPILATION";
        default: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
}
int nvrtcVersion(int* major, int* minor) { return *major = 12, *minor = 9, SUCCESS; }
int nvrtcGetNumSupportedArchs(int* n) { return *n = sizeof ARCHITECTURES / sizeof *ARCHITECTURES, SUCCESS; }
int nvrtcGetSupportedArchs(int* list) { return memcpy(list, ARCHITECTURES, sizeof ARCHITECTURES), SUCCESS; }
int nvrtcCreateProgram(Program** p, const char* text, const char* name, int n_headers, const char* const* headers, const char* const* names) {
    *p = new Program{text, name && *name ? name : "default_program", "", "", {}};
    for (int i = 0; i < n_headers; i++) (*p)->headers.emplace_back(names[i], headers[i]);
    return SUCCESS;
}
int nvrtcDestroyProgram(Program** p) { return delete *p, *p = nullptr, SUCCESS; }
int nvrtcCompileProgram(Program* p, int n, const char* const* options) { return compile(*p, n, options); }
int nvrtcGetProgramLogSize(Program* p, size_t* n) { return *n = with_end(p->log), SUCCESS; }
int nvrtcGetProgramLog(Program* p, char* log) { return memcpy(log, p->log.c_str(), with_end(p->log)), SUCCESS; }
int nvrtcGetCUBINSize(Program* p, size_t* n) { return *n = p->image.size(), p->image.empty() ? INVALID_INPUT : SUCCESS; }
int nvrtcGetCUBIN(Program* p, char* image) { return memcpy(image, p->image.data(), p->image.size()), SUCCESS; }
int nvrtcGetPTXSize(Program* p, size_t* n) { return nvrtcGetCUBINSize(p, n); }
int nvrtcGetPTX(Program* p, char* image) { return nvrtcGetCUBIN(p, image); }

}

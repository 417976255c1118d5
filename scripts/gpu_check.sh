#!/bin/sh
# What a machine with an NVIDIA GPU says of this checkout: the GPU tests, compute-sanitizer, the bench. Under 10 minutes, nothing fetched.
#
#   scripts/gpu_check.sh [-o FOLDER] [MODEL.gguf]     writes FOLDER/DEVICE-DATE.md (docs/gpu unless given), to be committed
#
# PYTHON names an interpreter that has ggrun's libraries, pytest and PyCUDA; else the checkout's own environments are tried, then python3.
# Every part has a time limit of its own and a failing one does not stop the others; the exit status is 1 when a part failed.
set -u
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
out=$root/docs/gpu
while getopts o: option; do
    case $option in o) out=$OPTARG ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
model=${1:-}
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    for python in ${PYTHON:-} "${XDG_CACHE_HOME:-$HOME/.cache}"/ggrun/env-*/bin/python python3; do
        "$python" -c 'import numba, numpy, pycuda, pytest' 2>/dev/null && return 0
    done
    fail "no Python here has numba, pycuda and pytest: make one with scripts/test and 'ggrun doctor --build-pycuda', and name it: PYTHON=/path/to/python"
}
find_python
cd "$root" || exit 1
export PYTHONPATH="$root" GGRUN_TEST_GPU="${GGRUN_TEST_GPU-1}" NO_COLOR=1 COLUMNS=140

device=$("$python" -c 'from ggrun.runtime.cuda.probe import usable_devices as d; print(d()[0].name)') || fail "there is no GPU that ggrun can use: see ggrun doctor"
mkdir -p "$out" || exit 1
slug=$(printf '%s' "$device" | tr -cs 'A-Za-z0-9' '-' | sed 's/^-*//; s/-*$//')
report=$out/$slug-$(date +%Y-%m-%d).md
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT INT TERM
summary= failed=0 started=$(date +%s)

# part SECONDS LINES TITLE COMMAND...: run it within its time, and add its last lines to the report
part() {
    seconds=$1 lines=$2 title=$3; shift 3
    printf '== %s\n' "$title" >&2
    begin=$(date +%s)
    timeout -k 10 "$seconds" "$@" >"$log" 2>&1
    status=$?
    took=$(($(date +%s) - begin))
    case $status in
        0) word=passed ;;
        124 | 137) word="stopped after $seconds s"; failed=1 ;;
        *) word="FAILED ($status)"; failed=1 ;;
    esac
    printf '   %s in %s s\n' "$word" "$took" >&2
    summary="$summary| $title | $word | $took |
"
    { printf '\n## %s\n\n`%s`: %s, %s s\n\n```\n' "$title" "$*" "$word" "$took"; tail -n "$lines" "$log"; printf '```\n'; } >>"$report.part"
}
skip() { summary="$summary| $1 | not run: $2 | |
"; }

: >"$report.part"
command -v nvidia-smi >/dev/null 2>&1 && part 20 30 "The card" nvidia-smi
part 30 30 "What ggrun finds" "$python" -m ggrun doctor
part 200 40 "GPU tests" "$python" -m pytest -q -rs -p no:cacheprovider tests/gpu
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || :)
if [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        part 45 15 "compute-sanitizer $tool" "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$python" -m ggrun run -ngl all -n 4 --temp 0 -p "What does len do?"
    done
else
    skip "compute-sanitizer" "it is not installed"
fi
tests="-p 512 -n 128 -r 3"
[ "$GGRUN_TEST_GPU" = 1 ] || tests="-p 16 -n 2 -r 1"      # the stand-in driver runs kernels on the CPU, thread by thread
part 50 20 "Bench of the embedded model, on the GPU" "$python" -m ggrun bench -ngl all $tests
if [ -n "$model" ]; then
    part 50 60 "Plan of $(basename "$model")" "$python" -m ggrun plan "$model"
    part 80 20 "Bench of $(basename "$model"), on the GPU" "$python" -m ggrun bench "$model" -ngl all -p 512 -n 128 -d 0,4096 -r 2
else
    skip "Bench of a larger model" "none was named"
fi

{
    printf '# %s, %s\n\n' "$device" "$(date +%Y-%m-%d)"
    printf 'Written by `scripts/gpu_check.sh` at commit %s in %s s.%s\n\n' "$(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)" \
        "$(($(date +%s) - started))" "$([ "$GGRUN_TEST_GPU" = 1 ] || printf ' On the stand-in driver: no hardware was involved.')"
    printf '| part | result | s |\n|---|---|---|\n%s' "$summary"
    cat "$report.part"
} >"$report"
rm -f "$report.part"
printf '%s\n' "$report"
exit $failed

#!/bin/sh
# What a machine with an NVIDIA GPU says of this checkout: correctness (GPU tests, every oracle file that is there, every cut, a full context, compute-sanitizer),
# what the card reaches and what ggrun gets from it, where a token's time goes, predictions beside measurements. Under 10 minutes, nothing fetched.
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
model=${1:-} others=
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
work=${GGRUN_GPU_WORK:-$(mktemp -d)} || exit 1     # models of random weights: keep the folder to make them once
mkdir -p "$work"
trap 'rm -f "$log"; [ -n "${GGRUN_GPU_WORK:-}" ] || rm -rf "$work"' EXIT INT TERM
summary= failed=0 started=$(date +%s)

# part SECONDS LINES TITLE COMMAND...: run it within its time, and add its last lines to the report
part() {
    seconds=$1 lines=$2 title=$3; shift 3
    left=$((started + 590 - $(date +%s)))
    if [ "$left" -lt 15 ]; then skip "$title" "ten minutes are over"; failed=1; return; fi
    [ "$seconds" -le "$left" ] || seconds=$left
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
if [ "$GGRUN_TEST_GPU" = 1 ]; then
    small= tests="tests/gpu/test_oracle.py tests/gpu/test_hybrid.py tests/gpu/test_executor.py tests/gpu/test_highest.py tests/gpu/test_op_offload.py"
    part 120 12 "Right: oracle files, every cut, batched and alone, graphs and launches" "$python" -m pytest -q -rs -p no:cacheprovider -m "slow or not slow" $tests
else
    small=--small       # the stand-in driver runs kernels on the CPU, thread by thread
    part 200 12 "GPU tests, a few" "$python" -m pytest -q -rs -p no:cacheprovider tests/gpu/test_executor.py tests/gpu/test_highest.py
fi
part 40 30 "What ggrun tune measures" "$python" -m ggrun tune
bench="$python scripts/gpu_bench.py"
part 40 12 "What the card reaches" $bench ceilings --kept "$work/ceilings.json" $small
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || :)
if [ -n "$sanitizer" ] && [ -z "$small" ]; then
    for tool in memcheck racecheck; do
        part 45 15 "compute-sanitizer $tool" "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$python" -m pytest -q -p no:cacheprovider tests/gpu/test_executor.py tests/gpu/test_highest.py
    done
else
    skip "compute-sanitizer" "it is not installed, or this is no GPU"
fi
if [ -z "$model" ] && [ -z "$small" ]; then
    part 90 5 "Models of random weights" $bench models "$work"
    model=$work/llama-3.1-8b-q4_k_m.gguf others="$work/llama-3.1-8b-q8_0.gguf $work/qwen3-0.6b-q8_0.gguf"
fi
part 70 14 "Speed of ${model:-the embedded model}" $bench speeds ${model:+"$model"} $small
part 60 40 "Where the time goes" $bench steps ${model:+"$model"} --kept "$work/ceilings.json" $small
part 60 6 "A full context" $bench full ${model:+"$model"} $small
part 90 10 "Predicted and measured" $bench predictions ${model:+"$model"} $small
part 60 5 "Load and first token" $bench first ${model:+"$model"}
for other in $others; do
    part 45 14 "Speed of $(basename "$other")" $bench speeds "$other"
done

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

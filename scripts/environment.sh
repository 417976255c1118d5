# Sourced by scripts/ggrun and scripts/test: finds Python and keeps one virtual environment per checkout, Python and set of extras.
#
#   environment EXTRAS   sets $env to an environment that has the project (editable) and EXTRAS ("" or "test") installed.
#
# Fast path: a stamp named after the hash of pyproject.toml, the checkout and the Python is there; neither Python nor pip is started.
# Everything said goes to stderr, so that `./scripts/ggrun run ... > answer.txt` stays clean even on its first use.
# While a command runs it holds a shared lock on its environment; outdated environments of this checkout that nobody holds are removed.

say() { printf '%s\n' "ggrun: $*" >&2; }
fail() { printf '%s\n' "error: $*" >&2; exit 1; }
lock() { command -v flock >/dev/null 2>&1 || return 0; flock "$@"; }

root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
envs=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ggrun

# environment_of PYTHON EXTRAS: where that environment is, or would be
environment_of() {
    hash=$( { cat "$root/pyproject.toml"; printf '%s\n' "$root" "$(readlink -f "$1")" "$2"; } | sha256sum)
    printf '%s\n' "$envs/env-$(printf %.12s "$hash")"
}

# candidates: every Python that might do, the best first, by full path
candidates() {
    for name in ${GGRUN_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        command -v "$name" 2>/dev/null || :
    done
}

find_python() {
    seen=
    for python in $(candidates); do
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) && return 0
        seen="$seen $python${version:+ ($version)}"
    done
    fail "ggrun needs Python 3.11 or newer; found:${seen:- none}. Install one (on Debian: apt install python3 python3-venv) or name it: GGRUN_PYTHON=/path/to/python3"
}

# progress: pip's output as one short line for each library; on a terminal they replace each other
progress() {
    n=0 before='  ' after='\n'
    [ -t 2 ] && { before='\r\033[K  '; after=; }
    while read -r word what rest; do
        case "$word" in
        Collecting) n=$((n + 1)); printf "$before%s$after" "$n ${what%%[!A-Za-z0-9._-]*}" ;;
        Downloading) case "$what" in *.whl) [ -t 2 ] && printf "$before%s" "$n ${what%%-*} $rest" ;; esac ;;
        Installing) [ "$what" = collected ] && printf "$before%s$after" "installing" ;;
        esac
    done
    [ -t 2 ] && printf '\r\033[K' || :
} >&2

# build PYTHON EXTRAS: make $env from nothing
build() {
    say "first use: making an environment in $env (Python $version; about 85 MB to fetch, once)"
    rm -rf "$env"
    if "$1" -c 'import ensurepip; ensurepip.version()' 2>/dev/null; then
        "$1" -m venv "$env" >&2 || fail "could not make the environment $env: see above"
        set -- "$env/bin/python" "$2"
    elif "$1" -m pip --python "$1" --version >/dev/null 2>&1; then     # Debian without python3-venv, but with python3-pip
        "$1" -m venv --without-pip "$env" >&2 || fail "could not make the environment $env: see above"
    else
        fail "$1 can make no virtual environment: python3-venv is missing. Install it, then run this again: ${SUDO_HINT}apt install python3-venv"
    fi
    { "$1" -m pip --python "$env/bin/python" --disable-pip-version-check install --progress-bar off --no-warn-script-location \
        --editable "$root${2:+[$2]}" 2>&1 || printf 'failed\n' > "$env/failed"; } | tee "$envs/install.log" | progress
    if [ -f "$env/failed" ]; then
        rm -rf "$env"
        grep -i '^error' "$envs/install.log" >&2 || tail -n 5 "$envs/install.log" >&2
        fail "pip could not install ggrun's libraries. Is there a connection to the package index? The whole story is in $envs/install.log; run this again to retry"
    fi
    say "ready"
    printf '%s\n' "$root" > "$env/checkout"
    printf '%s\n' "$2" > "$env/extras"
    "$env/bin/python" -m compileall -q "$root/ggrun" "$root/quant" >/dev/null 2>&1 || :
    date > "$env/stamp"
}

# sweep EXTRAS: remove this checkout's outdated environments that no running command holds
sweep() {
    for old in "$envs"/env-*; do
        [ "$old" != "$env" ] && [ -f "$old/stamp" ] || continue
        [ "$(cat "$old/checkout" 2>/dev/null)" = "$root" ] && [ "$(cat "$old/extras" 2>/dev/null)" = "$1" ] || continue
        ( lock -n -x 8 && rm -rf "$old" ) 8>"$old.lock" && rm -f "$old.lock"
    done
}

environment() {
    SUDO_HINT=$([ "$(id -u)" = 0 ] || printf 'sudo ')
    env=
    for python in $(candidates); do
        env=$(environment_of "$python" "$1")
        [ -f "$env/stamp" ] && [ -x "$env/bin/python" ] && break
        env=
    done
    if [ -z "$env" ]; then
        find_python
        env=$(environment_of "$python" "$1")
        mkdir -p "$envs" || fail "cannot write to $envs: set XDG_CACHE_HOME to a folder that can be written"
        exec 9>"$env.lock"
        lock -n -x 9 || { say "another start is making the environment; waiting for it"; lock -x 9; }
        if ! { [ -f "$env/stamp" ] && [ -x "$env/bin/python" ]; }; then
            build "$python" "$1"
            sweep "$1"
        fi
    fi
    exec 9>"$env.lock"
    lock -s 9
}

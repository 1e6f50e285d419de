#!/bin/sh
# entrypoint.sh COMMAND…   starts a command with kernels that are compiled already, where this processor can run them
# entrypoint.sh --compile  compiles them, when the image is built
#
# Numba finds a compiled kernel by the name and features of a processor, so kernels compiled for one machine would be
# compiled anew on every other. Those of the image are made for levels that many processors share, and are asked for by the
# name of the highest level whose flags /proc/cpuinfo lists. On a processor below all levels, and where NUMBA_CPU_NAME=host
# asks for it, Numba compiles for what it finds whenever a worker starts. A level that the building machine cannot run
# itself is left out, because compiling includes running.
#
# The kernels are copied because Numba reads a cache only where it may write, and the root file system may be read-only. They
# go to /tmp, which ends with the container: Numba does not notice when a function that a kernel inlines has changed, so
# kernels of one image must never meet the sources of another.
set -eu

kernels=$(dirname "$0")/../kernels

# x86-64-v3: servers since about 2015; x86-64-v4: those with AVX-512. Others: what the architecture guarantees.
case $(uname -m) in
x86_64) levels="x86-64-v4 x86-64-v3" ;;
*) levels=generic ;;
esac

describe() { # sets features (for LLVM) and flags (of /proc/cpuinfo) of a level
    features=
    flags=
    case $1 in
    x86-64-v3 | x86-64-v4)
        features=+64bit,+cmov,+cx8,+cx16,+fxsr,+mmx,+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+sahf,+popcnt,+crc32
        features=$features,+xsave,+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe
        flags="cx16 pni ssse3 sse4_1 sse4_2 lahf_lm popcnt xsave avx avx2 bmi1 bmi2 f16c fma abm movbe"
        ;;
    esac
    if [ "$1" = x86-64-v4 ]; then
        features=$features,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl,-prefer-256-bit
        flags="$flags avx512f avx512bw avx512cd avx512dq avx512vl"
    fi
}

can_run() {
    describe "$1"
    listed=$(grep -m 1 '^flags' /proc/cpuinfo || true)
    for flag in $flags; do
        case " $listed " in *" $flag "*) ;; *) return 1 ;; esac
    done
}

if [ "${1:-}" = --compile ]; then
    for level in $levels; do
        if can_run "$level"; then
            NUMBA_CPU_NAME=$level NUMBA_CPU_FEATURES=$features NUMBA_CACHE_DIR=$kernels/$level \
                python -P -c 'from worker.main import load_warm_build; load_warm_build()'
        fi
    done
    exit
fi

case ${NUMBA_CPU_NAME:-} in
host) unset NUMBA_CPU_NAME NUMBA_CPU_FEATURES ;;
"")
    for level in $levels; do
        if [ -d "$kernels/$level" ] && can_run "$level"; then
            export NUMBA_CPU_NAME="$level" NUMBA_CPU_FEATURES="$features"
            [ -e "$NUMBA_CACHE_DIR" ] || cp -R "$kernels/$level" "$NUMBA_CACHE_DIR"
            break
        fi
    done
    ;;
esac

exec "$@"

#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# cuda.sh [PART ...]: builds the crate for CUDA and runs the checks of benches/gpu, or some of their parts, and pipelines with
# device=cuda and device=auto, where there is neither a GPU nor CUDA: with stand-ins for CUDA's libraries, which compute on the
# CPU (tests/cuda). With CUDNN=/path/of/libcudnn.so.9 (9.8 or later; the folder in LD_LIBRARY_PATH, and cuBLAS' libraries in it,
# too) cuDNN itself says which engines an H200 has for each convolution, and whether they take its plan. x86-64 Linux.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."

made=$PWD/target/cuda
# Not the folder of the other builds: the plugin in it would take the place of the one for the CPU.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$made}
environment=$(.ci/cuda-toolkit.sh target/cuda-toolkit)
eval "$environment"
# Kernels of a GPU are compiled but not run.
export NVCC_APPEND_FLAGS=-Ofc=max
benches/gpu/stubs.sh "$made/stubs"

# Prints the values of a library's enumerations, of those that are the same in all its versions, from cudarc's bindings.
constants() {
    sed -nE 's/^ +(CU[A-Z]+_\w+) = ([0-9]+),$/\1 \2/p' "$(benches/gpu/cudarc.sh)/src/$1/sys/mod.rs" | sort -u |
        awk '{ count[$1]++; value[$1] = $2 } END { for (name in count) if (count[name] == 1) print "constexpr int " name " = " value[name] ";" }'
}

build_stand_ins() {
    local file compile=(c++ -std=c++20 -fPIC -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-clobbered -U_FORTIFY_SOURCE
        -include src/ops/cuda/kernels/host.h -I "$made" -I "$CUDA_HOME/include" -march=native)
    constants cudnn > "$made/cudnn.inc"
    constants cublas > "$made/cublas.inc"
    nm -D --defined-only "$made"/stubs/*.so | sed -nE 's/.* T (.*)/MISSING(\1)/p' | sort -u > "$made/missing.inc"
    rm -rf "$made/objects" "$made/lib"
    mkdir "$made/objects" "$made/lib"
    for file in driver memory cublas cudnn; do
        # Sums of floats may be vectorised: their order is not the GPU's anyway.
        "${compile[@]}" -O3 -fassociative-math -fno-signed-zeros -fno-trapping-math -c "tests/cuda/$file.cpp" -o "$made/objects/$file.o"
    done
    "${compile[@]}" -O2 -x c++ -c tests/cuda/kernels.cu -o "$made/objects/kernels.o"
    cc -fPIC -fno-builtin -w -I "$made" -c tests/cuda/missing.c -o "$made/objects/missing.o"
    c++ -shared "$made"/objects/*.o -ldl -o "$made/lib/libcuda.so.1"
    for file in cublas.so.13 cublasLt.so.13 curand.so.10 nvrtc.so.13 cudnn.so.9; do
        # With cuDNN itself its own cublasLt is needed, too.
        [[ -n ${CUDNN:-} && $file == cublasLt* ]] || ln -s libcuda.so.1 "$made/lib/lib$file"
    done
}

run() {
    LD_LIBRARY_PATH=$made/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} GPU_PROPERTIES=$PWD/tests/cuda/h200.json \
        XDG_CACHE_HOME=$made/cache "$@"
}

check() {
    run "$program" "$@" --device cuda:0 --quick
}

# All parts, two at a time: the stand-ins compute on one core.
check_all() {
    local losses
    check losses > "$made/losses.md" 2>&1 &
    losses=$!
    check checks
    wait "$losses" || {
        cat "$made/losses.md" >&2
        exit 1
    }
    grep ' 0 failed' "$made/losses.md"
}

# Ends with the last pipeline's output and a message.
fail() {
    cat "$made/pipeline.log" >&2
    echo "cuda.sh: $1" >&2
    exit 1
}

# paint FRAMES PROPERTY...: a pipeline that prints its messages.
paint() {
    local frames=$1
    shift
    GST_REGISTRY=$made/registry GST_PLUGIN_PATH=$CARGO_TARGET_DIR/release GST_DEBUG=gatys:2 run gst-launch-1.0 -m --no-fault \
        videotestsrc num-buffers="$frames" pattern=ball ! video/x-raw,width=67,height=45 ! videoconvert ! \
        gatys style-image="$made/style.png" iterations=3 initial-iterations=5 "$@" ! fakesink > "$made/pipeline.log" 2>&1 ||
        fail "the pipeline with $* failed"
}

# painted FRAMES PATTERN: fails unless so many of the last pipeline's messages match.
painted() {
    [[ $(grep -c "gatys, .*$2" "$made/pipeline.log") == "$1" ]] || fail "the pipeline did not paint $1 frames with $2"
}

pipelines() {
    gst-launch-1.0 -q videotestsrc num-buffers=1 pattern=smpte ! pngenc ! filesink location="$made/style.png"
    paint 4 device=cuda
    painted 4 'device=(string)cuda:0, precision=(string)f16'
    # A driver that does not know the kernels' version of PTX.
    GPU_DRIVER_IS_OLD=1 paint 1 device=auto
    painted 1 'device=(string)cpu'
    grep -q 'WARNING.*GPU 0 cannot be used' "$made/pipeline.log" || fail "there is no warning of an old driver"
}

program=$(LIBRARY_PATH=$made/stubs:$LIBRARY_PATH benches/gpu/program.sh --features cuda,cudnn --lib)
build_stand_ins
rm -rf "$made/cache" "$made/registry"
if (($#)); then check "$@"; else check_all; fi
pipelines

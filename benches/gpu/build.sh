#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# build.sh: makes target/gpu/gatys-gpu.tar.xz with all that run.sh needs on a machine with an NVIDIA GPU: the benchmark program, the
# plugin, the parts of GStreamer for one pipeline, a clip, and peer.py. It needs neither a GPU nor CUDA, and leaves CUDA's own
# libraries out. Needs what pipelines/setup.sh installs, python3 with pip, and xz.
set -euo pipefail
here=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."

made=target/gpu
folder=$made/gatys-gpu
archive=$made/gatys-gpu.tar.xz
# Small enough to be sent with a checkout of 30 MB where 64 MiB are the limit.
limit=36000000
# The elements of run.sh's pipeline.
elements=(filesrc matroskademux jpegdec identity videoconvert queue x264enc matroskamux)
# Libraries that any system with Python and PyTorch has, and that must be taken from one system together.
theirs='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\+\+))\.so'
cuda='^lib(cuda|cublas|cublasLt|curand|nvrtc|cudnn|cudart|nvJitLink)[._-]'

die() { echo "build.sh: $*" >&2; exit 1; }

for tool in cargo python3 xz strip ldd gst-launch-1.0 gst-inspect-1.0; do
    command -v "$tool" >/dev/null || die "needs $tool"
done

build() {
    local environment
    environment=$(.ci/cuda-toolkit.sh target/cuda-toolkit)
    eval "$environment"
    # Not the folder of other builds: tests compile slow kernels, to save time (tests/cuda.sh).
    export CARGO_TARGET_DIR=$PWD/$made/build
    unset NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS
    "$here/stubs.sh" "$made/stubs"
    export LIBRARY_PATH=$PWD/$made/stubs:$LIBRARY_PATH
    program=$("$here/program.sh" --no-default-features --features cudnn)
    cargo build --release --locked --lib --features cuda,cudnn
}

# Makes a clip and a style image.
make_pictures() {
    local raw=(fdsrc ! rawvideoparse format=rgb width=640 height=360 framerate=30/1 ! videoconvert)
    python3 "$here/clip.py" 640 360 120 1 |
        gst-launch-1.0 -q "${raw[@]}" ! video/x-raw,format=I420 ! jpegenc quality=40 ! matroskamux ! filesink location="$folder/clip.mkv"
    python3 "$here/clip.py" 640 360 1 2 | gst-launch-1.0 -q "${raw[@]}" ! jpegenc ! filesink location="$folder/style.jpg"
}

plugin_of() { gst-inspect-1.0 "$1" | sed -n 's/^ *Filename  *//p' | head -n 1; }

# Copies the libraries that the given files load, except the system's own and CUDA's.
copy_libraries() {
    local name path
    ldd "$@" | sed -nE 's/^\s+(\S+) => (\/\S+) .*/\1 \2/p' | sort -u | while read -r name path; do
        [[ $name =~ $theirs || $name =~ $cuda ]] || cp -L "$path" "$folder/lib/$name"
    done
}

mkdir -p "$made"
build
rm -rf "$folder" "$archive"
mkdir -p "$folder"/{bin,lib,plugins}
cp "$here/run.sh" "$here/peer.py" "$folder"
cp "$program" "$folder/gpu"
cp -L "$(command -v gst-launch-1.0)" "$folder/bin"
for element in "${elements[@]}"; do
    plugin=$(plugin_of "$element")
    [[ -n $plugin ]] || die "GStreamer has no element $element"
    cp -L "$plugin" "$folder/plugins"
done
cp "$made/build/release/libgstgatys.so" "$folder/plugins"
make_pictures
copy_libraries "$folder"/bin/* "$folder"/plugins/*
chmod u+w "$folder"/lib/*
strip --strip-unneeded "$folder/gpu" "$folder"/plugins/libgstgatys.so
git describe --always --dirty > "$folder/commit"

carried=$(find "$folder" -type f -printf '%f\n' | grep -E "$cuda" || true)
[[ -z $carried ]] || die "CUDA's own libraries must stay out: $carried"
# Both binaries contain the built-in weights, 4-byte numbers: a dictionary that spans both stores them once.
tar -C "$made" --sort=name --owner=0 --group=0 --numeric-owner -c gatys-gpu | xz --lzma2=preset=6,dict=128MiB,lc=2,lp=2 > "$archive"
size=$(stat -c %s "$archive")
((size < limit)) || die "$archive has $size bytes, and $limit are allowed"
glibc=$(objdump -T "$folder/gpu" "$folder"/{bin,lib,plugins}/* | grep -oE 'GLIBC_2\.[0-9]+' | sort -uV | tail -n 1)
echo "$archive: $size bytes; needs $glibc. On a machine with a GPU: python3 -m tarfile -e gatys-gpu.tar.xz && bash gatys-gpu/run.sh"

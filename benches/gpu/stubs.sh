#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# stubs.sh DIR: makes stub libraries in DIR, to link CUDA programs where there is no CUDA: those that cudarc links, with the same
# sonames and functions that do nothing.
set -euo pipefail
[[ $# == 1 ]] || { echo "usage: ${0##*/} DIR" >&2; exit 2; }
mkdir -p "$1"
cudarc=$("$(dirname "${BASH_SOURCE[0]}")/cudarc.sh")

# stub MODULE LIBRARY SONAME
stub() {
    grep -ohE 'fn (cu|nvrtc)[A-Za-z0-9_]+\(' "$cudarc/src/$1/sys/mod.rs" | sed 's/^fn //; s/($//' | sort -u |
        sed 's/.*/void &(void) {}/' | cc -w -fno-builtin -shared -x c - -o "$dir/lib$2.so" "-Wl,-soname,$3"
}

dir=$1
stub driver cuda libcuda.so.1
stub cublas cublas libcublas.so.13
stub cublaslt cublasLt libcublasLt.so.13
stub curand curand libcurand.so.10
stub nvrtc nvrtc libnvrtc.so.13
stub cudnn cudnn libcudnn.so.9

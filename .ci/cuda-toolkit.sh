#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# cuda-toolkit.sh DIR: a CUDA 13.0 compiler with its headers in DIR, enough to compile the `cuda` and `cudnn` features where there
# is neither GPU nor driver nor root (x86-64 Linux). Prints the environment to compile with: eval "$(.ci/cuda-toolkit.sh DIR)"
set -euo pipefail

wheels=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
)

die() { echo "cuda-toolkit.sh: $*" >&2; exit 1; }

unpack_into() {
    local dest=$1 wheel
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --platform manylinux_2_12_x86_64 --platform manylinux2010_x86_64 \
        --dest "$dest/wheels" "${wheels[@]}" >&2
    for wheel in "$dest"/wheels/*.whl; do
        python3 -m zipfile -e "$wheel" "$dest"
    done
    rm -r "$dest/wheels"
    local home=$dest/nvidia/cu13
    chmod +x "$home"/bin/* "$home"/nvvm/bin/*           # zipfile drops the permissions
    ln -s lib "$home/lib64"                             # where nvcc and cudarc look
    ln -s libcudart_static.a "$home/lib/libcudart.a"    # so that -lcudart asks for no shared library
}

try_compiler() {
    local home=$1 probe
    probe=$(mktemp -d)
    echo '#include <cuda_fp16.h>
          __global__ void one(__half *x) { *x = 1.f; }
          int main() { one<<<1, 1>>>(0); }' > "$probe/one.cu"
    "$home/bin/nvcc" -arch=sm_90 -o "$probe/one" "$probe/one.cu" >&2 || die "the compiler in $home does not work"
    rm -r "$probe"
}

[[ $# == 1 ]] || { echo "usage: ${0##*/} DIR" >&2; exit 2; }
[[ $(uname -sm) == "Linux x86_64" ]] || die "only for Linux on x86-64"
command -v c++ >/dev/null || die "needs a C++ compiler (g++)"

mkdir -p "$(dirname "$1")"
dir=$(CDPATH='' cd "$(dirname "$1")" && pwd)/$(basename "$1")
[[ $dir != *[[:space:]]* ]] || die "nvcc does not take blanks in its own path: $dir"

# The folder appears under its name when it is complete, and names what it was made from: an unfinished or older one is made anew.
if [[ $(cat "$dir/made-from" 2>/dev/null) != "${wheels[*]}" ]]; then
    python3 -m pip --version >/dev/null 2>&1 || die "needs python3 with pip (python3-pip)"
    echo "Getting the CUDA compiler (about 100 MB) into $dir" >&2
    rm -rf "$dir" "$dir.part"
    mkdir "$dir.part"
    unpack_into "$dir.part"
    try_compiler "$dir.part/nvidia/cu13"
    echo "${wheels[*]}" > "$dir.part/made-from"
    mv "$dir.part" "$dir"
fi

printf -v home %q "$dir/nvidia/cu13"
cat <<END
export CUDA_HOME=$home CUDA_PATH=$home NVCC=$home/bin/nvcc
export PATH=$home/bin:\$PATH
export LIBRARY_PATH=$home/lib64\${LIBRARY_PATH:+:\$LIBRARY_PATH}
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-90} CUDARC_CUDA_VERSION=13000
END

#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [--out FILE] [--python PYTHON]: checks and measurements on this machine's NVIDIA GPU, within 10 minutes. Writes FILE
# (by default RESULTS.md), in Markdown, anew after each part, and beside it an archive of the logs (.tar.gz in place of .md): the
# output of each part, of cuDNN and of a profiler, and the chosen algorithms. Needs CUDA 13's libraries with cuDNN 9, and PyTorch
# for one part; no network. The exit status is 0 only if all demands are met. `--device cpu --quick` tests the script without a GPU.
set -euo pipefail
here=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

out=$PWD/RESULTS.md device=cuda quick=() python='' longest=0
frames=(24 120)
while (($#)); do
    case $1 in
        --out) out=$(realpath -m "$2"); shift ;;
        --python) python=$2; shift ;;
        --device) device=$2; shift ;;
        --quick) quick=(--quick) longest=64 frames=(3 6) ;;
        *) echo "usage: run.sh [--out FILE] [--python PYTHON]" >&2; exit 2 ;;
    esac
    shift
done
parts=(vectors convolutions pooling gram content optimizers losses recordings instances times pipeline peer throughput races)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/logs"
ends=$((SECONDS + 560))
# Empty caches, shared by all parts: cuDNN's algorithms are measured anew and kernels compiled anew, once.
export XDG_CACHE_HOME=$work/logs/cache CUDA_CACHE_PATH=$work/compiled
export CUDNN_LOGLEVEL_DBG=1 CUDNN_LOGDEST_DBG=stderr GST_DEBUG=2 GST_DEBUG_NO_COLOR=1 RUST_BACKTRACE=0

# Prints a Python that has PyTorch, or else any.
find_python() {
    local candidate
    for candidate in "$python" python3 python /opt/*/.venv/bin/python /opt/*/bin/python; do
        # Importing it would take long.
        if "$candidate" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo python3
}

# Prints the folder of the driver's library that PyTorch loads.
find_driver() {
    "$python" -c 'import torch
torch.cuda.init()
print(*{line.split()[-1].rpartition("/")[0] for line in open("/proc/self/maps") if "/libcuda.so" in line})' 2>/dev/null || true
}

# Prints the folders of CUDA's libraries: for each library the first that has it.
find_cuda() {
    local candidates=() folder library
    mapfile -t candidates < <(
        "$python" -c 'import glob, nvidia
for path in nvidia.__path__: print(*glob.glob(path + "/*/lib"), sep="\n")' 2>/dev/null || true
        tr ':' '\n' <<< "${LD_LIBRARY_PATH:-}"
        printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib /usr/local/nvidia/lib64 /usr/local/nvidia/lib
        ldconfig -p 2>/dev/null | sed -nE 's/.*lib(cuda|cublas|cudnn|curand|nvrtc)\.so\.[0-9]+ .*=> (.*)\/[^/]*/\2/p' || true
        echo /usr/lib/x86_64-linux-gnu)
    # The driver's folder comes last, as it may have other versions of CUDA's libraries.
    for library in libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libnvrtc.so.13 libcudnn.so.9 libcuda.so.1; do
        for folder in "${candidates[@]}"; do
            if [[ -n $folder && -e $folder/$library ]]; then echo "$folder"; continue 2; fi
        done
        folder=''
        if [[ $library == libcuda.so.1 ]]; then folder=$(find_driver); fi
        if [[ -n $folder ]]; then echo "$folder"; continue; fi
        echo "run.sh: there is no $library" >&2
    done | awk '!seen[$0]++' | paste -sd:
}

# part NAME SECONDS COMMAND...: runs the command within that time, with its output in the work folder.
part() {
    local name=$1 limit=$2 left=$((ends - SECONDS)) status=0
    shift 2
    if ((limit > left)); then limit=$left; fi
    echo "== $name, up to $limit s" >&2
    if ((limit < 5)); then
        status=124 && : > "$work/$name.md"
    else
        timeout --kill-after=5 "$limit" "$@" > "$work/$name.md" 2> "$work/logs/$name.err" || status=$?
    fi
    echo "$status" > "$work/$name.status"
    write
}

pipeline() { # ITERATIONS FRAMES
    GST_REGISTRY_1_0=$work/registry GST_REGISTRY_FORK=no GST_PLUGIN_SYSTEM_PATH_1_0='' GST_PLUGIN_PATH_1_0=$here/plugins \
        LD_LIBRARY_PATH=$here/lib:$cuda "$here/bin/gst-launch-1.0" -q --no-fault filesrc location="$here/clip.mkv" ! matroskademux ! jpegdec ! \
        identity eos-after="$2" ! videoconvert ! queue ! \
        gatys style-image="$here/style.jpg" iterations="$1" max-size="$longest" device="$device" ! queue ! \
        videoconvert ! x264enc speed-preset=veryfast ! matroskamux ! filesink location="$work/painted.mkv"
}

# From the difference between a long and a short run, so that starting up and the first frame do not count.
rates() {
    local iterations count begun seconds=()
    echo "| iterations | frames a second | seconds for ${frames[0]} frames | for ${frames[1]} |"
    echo "|---|---|---|---|"
    # The first run measures cuDNN's algorithms.
    pipeline 2 2
    for iterations in 10 5 20; do
        seconds=()
        for count in "${frames[@]}"; do
            begun=$(date +%s.%N)
            pipeline "$iterations" "$count"
            seconds+=("$(awk -v a="$begun" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }')")
        done
        awk -v i="$iterations" -v m="${frames[0]}" -v n="${frames[1]}" -v a="${seconds[0]}" -v b="${seconds[1]}" \
            'BEGIN { printf "| %d | %.1f | %s | %s |\n", i, (n - m) / (b - a), a, b; fflush() }'
    done
}

# cell FILE COLUMN PATTERN...: a number from the first row of a table whose first columns match the patterns.
cell() {
    awk -F ' *[|] *' -v column="$2" -v first="$3" -v second="${4:-.}" \
        '$2 ~ first && $3 ~ second && $(column + 1) ~ /^[0-9.]+$/ { print $(column + 1); exit }' "$work/$1.md" 2>/dev/null || true
}

# least FILE COLUMN PATTERN: the least number in the column of the rows whose first column matches.
least() {
    awk -F ' *[|] *' -v column="$2" -v first="$3" \
        '$2 ~ first && $(column + 1) ~ /^[0-9.]+$/ { print $(column + 1) }' "$work/$1.md" 2>/dev/null | sort -g | head -n 1 || true
}

# demand TEXT MEASURED OPERATOR LIMIT
demand() {
    local verdict=FAIL
    if [[ -z $2 || -z $4 ]]; then
        verdict='FAIL (not measured)'
    elif awk -v a="$2" -v b="$4" "BEGIN { exit !(a $3 b) }"; then
        verdict=PASS
    fi
    echo "| $1 | ${2:-–} | ${4:-–} | $verdict |"
}

# The number of parts of the checks that failed.
failing() {
    local name failed=0
    for name in convolutions pooling gram content vectors optimizers losses instances recordings; do
        [[ $(cat "$work/$name.status" 2>/dev/null) == 0 ]] || failed=$((failed + 1))
    done
    echo "$failed"
}

demands() {
    local evaluation iteration theirs
    evaluation=$(cell times 3 '^640x360$' '^f16$')
    iteration=$(cell times 4 '^640x360$' '^f16$')
    theirs=$(least peer 4 '^640x360$')
    echo "| demand | measured | limit | |"
    echo "|---|---|---|---|"
    demand "parts of the checks that fail" "$(failing)" '<=' 0
    demand "value and gradient at 640x360, f16, ms" "$evaluation" '<=' 1.0
    demand "iteration of L-BFGS at 640x360, f16, ms" "$iteration" '<=' 1.0
    demand "value and gradient at 640x360, ms, and PyTorch's fastest" "$evaluation" '<' "$theirs"
    demand "frames a second, decoded, painted with 10 iterations and encoded, 640x360" "$(cell pipeline 2 '^10$')" '>=' 30
}

# Writes the results so far.
write() {
    local name status
    {
        echo "# Results"
        echo
        echo "$machine"
        echo
        demands
        for name in "${parts[@]}"; do
            [[ -e $work/$name.status ]] || continue
            status=$(cat "$work/$name.status")
            printf '\n## %s\n\n' "$name"
            cat "$work/$name.md"
            case $status in
                0) ;;
                124 | 137) printf '\n**Its time was over.**\n' ;;
                *) printf '\n**It ended with status %s.**\n' "$status" ;;
            esac
            if [[ $status != 0 && -s $work/logs/$name.err ]]; then
                # shellcheck disable=SC2016
                printf '\n```\n%s\n```\n' "$(tail -n 15 "$work/logs/$name.err")"
            fi
        done
    } > "$out.part"
    mv "$out.part" "$out"
    if tar -C "$work" -czf "$out.part" logs; then mv "$out.part" "${out%.md}.tar.gz"; fi
}

# Prints the kernels of one evaluation with their times, if there is a profiler that works.
profile() {
    local limit=$(((ends - SECONDS) / 3))
    local evaluation=(env LD_LIBRARY_PATH="$cuda" "$here/gpu" evaluation --device "$device" "${quick[@]}")
    if ((limit < 5)); then return; fi
    within() { timeout --kill-after=5 $((limit < 40 ? limit : 40)) "$@"; }
    if command -v ncu >/dev/null; then
        within ncu --clock-control none --target-processes all --metrics gpu__time_duration.sum --csv "${evaluation[@]}" && return
    fi
    if command -v nsys >/dev/null; then
        within nsys profile --trace cuda --output "$work/profile" "${evaluation[@]}" &&
            within nsys stats --report cuda_gpu_trace --format csv "$work/profile.nsys-rep"
    fi
}

describe() {
    local card
    card=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1) || true
    echo "- Card and driver: ${card:-none that nvidia-smi knows}"
    echo "- Date: $(date -u +%F)"
    echo "- Commit: $(cat "$here/commit" 2>/dev/null || echo unknown)"
    echo "- CPU: $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) threads"
    "$python" -c 'from importlib.metadata import version; print("- PyTorch", version("torch"))' 2>/dev/null || echo "- No PyTorch"
    echo "- CUDA's libraries: $(tr ':' ' ' <<< "$cuda")"
}

python=$(find_python)
cuda=$(find_cuda)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
machine=$(describe)
write
gpu() {
    local name=$1 limit=$2
    part "$name" "$limit" env LD_LIBRARY_PATH="$cuda" "$here/gpu" "$name" --device "$device" "${quick[@]}"
}
export -f pipeline rates
export here work cuda device longest
declare -p frames > "$work/frames"
# The most important parts come first. Most end long before their limit; what is left of the time limits the last ones. The first
# one has to load and compile much: it is one that is short itself.
gpu vectors 40
gpu convolutions 60
gpu pooling 20
gpu gram 25
gpu content 20
gpu optimizers 20
gpu losses 80
gpu recordings 60
gpu instances 60
gpu times 90
part pipeline 90 bash -c "set -euo pipefail; source '$work/frames'; rates"
part peer 95 "$python" "$here/peer.py" --seconds 65 --device "$device"
gpu throughput 40
# Whether threads of a block disturb each other in shared memory: no check of results is sure to show it.
if command -v compute-sanitizer >/dev/null; then
    part races 60 env LD_LIBRARY_PATH="$cuda" compute-sanitizer --tool racecheck --error-exitcode 1 \
        "$here/gpu" pooling gram content vectors optimizers --device "$device" --quick
fi
profile > "$work/logs/profile.csv" 2> "$work/logs/profile.err" || true
write
cat "$out"
[[ $(demands) != *FAIL* ]]

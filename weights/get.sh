#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# Gets the weights that were trained on ImageNet, for weights=imagenet.
set -euo pipefail

url=https://download.pytorch.org/models/vgg19-dcbb9e9d.pth
sha256=dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44
attempts=10

usage() {
    cat <<END
usage: ${0##*/} [FILE]
       ${0##*/} --url URL --sha256 SUM

Downloads torchvision's VGG-19 (548 MiB), which was trained on ImageNet, and keeps its convolutions (40 MB) where the element
finds them as weights=imagenet. A download that was interrupted goes on where it ended. With FILE, a VGG-19 that you have
in any format that the element reads, nothing is downloaded. With --url and --sha256, the file is taken from another place.
END
}

die() { printf 'get.sh: %s\n' "$@" >&2; exit 1; }

file=
given=()
while [[ $# -gt 0 ]]; do
    case $1 in
    -h | --help) usage; exit ;;
    --url | --sha256)
        [[ $# -ge 2 ]] || { usage >&2; exit 2; }
        printf -v "${1#--}" %s "$2"
        given+=("$1")
        shift 2
        ;;
    -*) usage >&2; exit 2 ;;
    *)
        [[ -n $1 && -z $file ]] || { usage >&2; exit 2; }
        file=$1
        shift
        ;;
    esac
done

if [[ ${#given[@]} != 0 ]]; then
    [[ ${#given[@]} == 2 && ${given[0]} != "${given[1]}" && -z $file ]] || { usage >&2; exit 2; }
fi
sha256=$(tr A-F a-f <<<"$sha256")

root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# As GLib finds it.
[[ ${XDG_DATA_HOME:-/} == /* ]] || die "XDG_DATA_HOME is not an absolute path: $XDG_DATA_HOME"
directory=${XDG_DATA_HOME:-$(echo ~/.local/share)}/gst-plugin-gatys
made=$directory/imagenet.safetensors
part=$directory/${url##*/}.part

need() { command -v "$1" >/dev/null || die "needs the program $1: ${2:-install the package $1}"; }

sum() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi <"$1" | cut -d' ' -f1
}

# What to do without a network.
by_hand() {
    printf '%s\n' "Get the file by other means, from" "    $url" "and then run" "    $0 FILE" \
        "or set the element's property weights to its path."
}

size() { if [[ -e $part ]]; then wc -c <"$part"; else echo 0; fi; }

# Downloads what is missing of the file. curl's own attempts would begin again where this one did.
download() {
    local attempt before answer status
    for ((attempt = 1; attempt <= attempts; attempt++)); do
        [[ ! -e $part || $(sum "$part") != "$sha256" ]] || return 0
        before=$(size)
        [[ $before == 0 ]] || echo "Going on after $before bytes"
        status=0
        answer=$(curl --fail --location --continue-at - --connect-timeout 20 --speed-limit 1000 --speed-time 30 \
            --progress-bar --output "$part" --write-out '%{http_code}' "$url") || status=$?
        case $status:$answer in
        # The server has no such bytes, or cannot go on in the middle: from the start. (curl may call the former a success.)
        *:416 | 33:* | 36:*) rm -f "$part"; continue ;;
        0:*) return 0 ;;
        22:4*) break ;;
        23:*) die "$part cannot be written: is the disk full?" ;;
        6:* | 7:*) [[ $attempt -lt 3 ]] || die "there is no network, or no way to $url (curl's error $status)." "$(by_hand)" ;;
        esac
        # Where nothing came, waiting may help.
        [[ $(size) -gt $before ]] || sleep $((attempt < 4 ? attempt : 4))
    done
    die "$url could not be downloaded (answer $answer, curl's error $status). What there is of it is kept:" \
        "start again to go on." "$(by_hand)"
}

# Without the lock, which a compiler's server that it starts would keep.
example() { cargo "$1" --quiet --release --manifest-path "$root/Cargo.toml" --example weights "${@:2}" 9>&-; }

convert() {
    example run -- "$1" "$made.part"
    # It is written as a temporary file is, for its owner alone.
    chmod go+r "$made.part"
    mv "$made.part" "$made"
}

need cargo "see https://rustup.rs"
if [[ -n $file ]]; then
    [[ -r $file ]] || die "there is no file $file that can be read"
    mkdir -p "$directory"
    convert "$file"
elif [[ -e $made ]]; then
    echo "$made is there already (remove it to make it anew)"
else
    need curl
    command -v sha256sum >/dev/null || need shasum "install coreutils"
    mkdir -p "$directory"
    exec 9>"$directory/get.lock"
    ! command -v flock >/dev/null || flock --nonblock 9 || die "another get.sh is at work in $directory"
    # What cannot be built is better known before the download.
    example build
    echo "Downloading $url"
    download
    found=$(sum "$part")
    if [[ $found != "$sha256" ]]; then
        rm -f "$part"
        die "what was downloaded is not the right file and was removed: its SHA-256 is $found, not $sha256." \
            "Start again; if it stays so, something on the way changes the file." "$(by_hand)"
    fi
    convert "$part"
    rm -f "$part" "$directory/get.lock"
fi
echo "Use it as weights=imagenet ($made)"

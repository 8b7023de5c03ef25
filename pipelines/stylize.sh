#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# Stylises a video from a fresh clone: sets up what is missing, builds the plugin, and paints the sample clip or the files named.
set -euo pipefail

usage() {
    cat <<END
usage: ${0##*/}
       ${0##*/} [--beside] INPUT STYLE OUTPUT [PROPERTY=VALUE ...]

Without arguments, paints a sample clip in a sample style into ./stylized.mp4. With them, paints the video INPUT in the style of
the image STYLE into OUTPUT (.mp4, .m4v, .mov or .mkv), with its sound, frame rate and size; with --beside twice as wide, each
painting on the right of its frame. PROPERTY is one of the element's: see README.md. The first run installs missing packages (it
says which) and builds for some minutes.
END
}

for arg; do
    [[ $arg != -h && $arg != --help ]] || { usage; exit; }
done
beside=
[[ ${1-} != --beside ]] || { beside=$1; shift; }
[[ $# -ge 3 || $# == 0 && -z $beside ]] || { usage >&2; exit 2; }
for file in "${@:1:2}"; do
    [[ -r $file ]] || { echo "${0##*/}: $file is not there, or cannot be read" >&2; exit 1; }
done

root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
example() { cargo run --quiet --release --manifest-path "$root/Cargo.toml" --example "$@"; }

make_sample() {
    local sample=$root/target/sample
    [[ ! -d $sample || -n $(find "$root/examples/sample" -newer "$sample") ]] || return 0
    echo "Making a sample clip and a sample style in $sample"
    rm -rf "$sample.part"
    mkdir -p "$sample.part"
    example sample -- "$sample.part"
    rm -rf "$sample"
    mv "$sample.part" "$sample"
}

"$root/pipelines/setup.sh"
cargo build --release --manifest-path "$root/Cargo.toml" --lib --example stylize --example sample
if [[ $# -gt 0 ]]; then
    example stylize -- ${beside:+"$beside"} "$@"
else
    make_sample
    echo "Painting $root/target/sample/sample.mp4 in the style of style.png beside it"
    example stylize -- "$root/target/sample/sample.mp4" "$root/target/sample/style.png" stylized.mp4
    echo "The result is $PWD/stylized.mp4"
fi

#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# Stylises a video as stylize.sh does, and shows each frame on the left of its painting.
set -euo pipefail

usage() {
    cat <<END
usage: ${0##*/} INPUT STYLE OUTPUT [PROPERTY=VALUE ...]

Paints the video INPUT in the style of the image STYLE into OUTPUT (.mp4, .m4v, .mov or .mkv), with the frame on the left and its
painting on the right, so twice as wide as INPUT, with its sound and frame rate. PROPERTY is one of the element's: see
gst-inspect-1.0 gatys. The first run installs missing packages (it says which) and builds for some minutes.
END
}

for arg; do
    [[ $arg != -h && $arg != --help ]] || { usage; exit; }
done
[[ $# -ge 3 ]] || { usage >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/pipelines/setup.sh"
cargo build --release --manifest-path "$root/Cargo.toml" --lib --example stylize
cargo run --quiet --release --manifest-path "$root/Cargo.toml" --example stylize -- --beside "$@"

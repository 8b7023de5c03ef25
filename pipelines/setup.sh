#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# setup.sh [PACKAGE ...]: sees to what building and running the plugin needs: GStreamer with its plugins, from the distribution's
# packages (and any PACKAGE named), and a Rust toolchain. Uses root for apt-get alone, and no network where nothing is missing.
set -euo pipefail

root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
packages=(
    build-essential pkg-config
    libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev
    gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad
    gstreamer1.0-plugins-ugly gstreamer1.0-libav
    "$@"
)
modules=(gstreamer-1.0 gstreamer-base-1.0 gstreamer-video-1.0 gstreamer-app-1.0 gstreamer-check-1.0)
elements=(
    parsebin decodebin videoconvert videobox videoflip deinterlace audioconvert audioresample multiqueue
    qtdemux mp4mux qtmux matroskamux h264parse aacparse x264enc avdec_h264 avdec_aac avenc_aac
)

die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

install_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        # A line for each architecture that the package is there for.
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [[ ${#missing[@]} == 0 ]] && return
    echo "setup: to build and run the plugin, these packages are missing and will be installed: ${missing[*]}"
    local as_root=(env DEBIAN_FRONTEND=noninteractive)
    if [[ $(id -u) != 0 ]]; then
        command -v sudo >/dev/null || die "that needs root, and there is no sudo. As root, run" \
            "  apt-get install ${missing[*]}" "and start again."
        as_root=(sudo "${as_root[@]}")
        echo "setup: sudo is used for apt-get alone"
    fi
    "${as_root[@]}" apt-get update
    "${as_root[@]}" apt-get install --yes --no-install-recommends "${missing[@]}"
}

check_without_packages() {
    local missing=() command element
    for command in cc pkg-config gst-inspect-1.0; do
        command -v "$command" >/dev/null || missing+=("the program $command")
    done
    for element in "${elements[@]}"; do
        gst-inspect-1.0 --exists "$element" 2>/dev/null || missing+=("GStreamer's element $element")
    done
    [[ ${#missing[@]} == 0 ]] || die "this is not a Debian or Ubuntu system. Please install GStreamer 1.20 or later with its" \
        "development files and its base, good, bad, ugly and libav plugins, and a C compiler. Missing:" "${missing[@]/#/  }"
}

check_gstreamer() {
    local module
    for module in "${modules[@]}"; do
        pkg-config --atleast-version=1.20 "$module" ||
            die "needs $module 1.20 or later, found: $(pkg-config --modversion "$module" 2>/dev/null || echo none)"
    done
}

check_rust() {
    local needed found
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    command -v cargo >/dev/null && command -v rustc >/dev/null ||
        die "needs Rust $needed or later: install it with rustup, https://rustup.rs, open a new shell, and start again"
    found=$(cd "$root" && rustc --version | cut -d ' ' -f 2)
    [[ $(printf '%s\n' "$needed" "$found" | sort -V | head -n 1) == "$needed" ]] ||
        die "needs Rust $needed or later and found $found: with rustup, run 'rustup update stable'"
}

check_rust
if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    install_packages
else
    check_without_packages
fi
check_gstreamer

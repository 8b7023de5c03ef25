#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# Installs the plugin with meson below a temporary folder, and asks GStreamer whether it finds the element there.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

meson setup "$work/build" -Dtarget-dir="${CARGO_TARGET_DIR:-$PWD/target}"
meson install -C "$work/build" --destdir "$work/installed"

plugin=$(find "$work/installed" -name 'libgstgatys.*')
[[ -f $plugin ]] || { echo "meson.sh: expected one plugin, found: ${plugin:-none}" >&2; exit 1; }
expected=$(pkg-config --variable=pluginsdir gstreamer-1.0)
[[ ${plugin%/*} == "$work/installed$expected" ]] ||
    { echo "meson.sh: ${plugin#"$work/installed"} is not in GStreamer's folder $expected" >&2; exit 1; }
GST_REGISTRY=$work/registry GST_PLUGIN_PATH=${plugin%/*} gst-inspect-1.0 gatys > "$work/manual"
grep -q "Filename *$plugin" "$work/manual" ||
    { echo "meson.sh: gst-inspect-1.0 finds another gatys:" >&2; grep Filename "$work/manual" >&2; exit 1; }
GST_REGISTRY=$work/registry2 meson devenv -C "$work/build" gst-inspect-1.0 gatys > /dev/null ||
    { echo "meson.sh: there is no gatys in meson's own environment" >&2; exit 1; }
built=$(echo "$work"/build/libgstgatys.*)
ln "$built" "$work/in-use"
meson compile -C "$work/build"
[[ ! $built -ef $work/in-use ]] || { echo "meson.sh: meson compile writes over a library that may be in use" >&2; exit 1; }
echo "meson.sh: gst-inspect-1.0 finds gatys in ${plugin%/*}"

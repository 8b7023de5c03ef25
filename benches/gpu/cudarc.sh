#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# cudarc.sh: prints the folder of the sources of cudarc, of the version in Cargo.lock.
set -euo pipefail
root=$(CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cargo metadata --locked --features cudnn --format-version 1 --manifest-path "$root/Cargo.toml" | python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(it["manifest_path"]) for it in packages if it["name"] == "cudarc"))'

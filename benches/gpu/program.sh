#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# program.sh ARGUMENT...: builds the benchmark program with these arguments of cargo build, and prints its path.
set -euo pipefail
cargo build --release --locked --bench gpu --message-format json-render-diagnostics "$@" | python3 -c '
import json, sys
built = [json.loads(line) for line in sys.stdin]
print(*[it["executable"] for it in built if it.get("executable") and it["target"]["name"] == "gpu"])'

#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [SECONDS]: feeds the weights' readers damaged files for so long (60), beginning with those in tests/families.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH=${CARGO_HOME:-${HOME-}/.cargo}/bin:$PATH
command -v cargo-fuzz >/dev/null || cargo install --quiet --locked --version '^0.13' cargo-fuzz
corpus=target/fuzz-corpus
mkdir -p "$corpus"
# No sanitizer: those need a nightly toolchain. The target itself watches how much memory is asked for. Not optimised, because
# candle then builds in a fraction of the time, and with every debug assertion.
cargo fuzz run --dev --sanitizer none --target-dir target/fuzz weights "$corpus" tests/families -- \
    -max_total_time="${1:-60}" -max_len=65536 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1

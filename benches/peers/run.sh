#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [OPTION ...]: compares an evaluation with PyTorch's; the options go to compare.py (--help lists them).
# PEERS_PYTHON=PYTHON takes a Python that has the packages in requirements.txt instead of making target/peers.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."

make_environment() {
    local made=target/peers
    ! cmp --quiet "$here/requirements.txt" "$made/made-from" || return 0
    echo "Getting PyTorch into $made" >&2
    rm -rf "$made"
    python3 -m venv "$made"
    "$made/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$made/made-from"
}

if [[ -z ${PEERS_PYTHON:-} ]]; then
    make_environment
    PEERS_PYTHON=target/peers/bin/python
fi
# compare.py starts it, and is to find it built.
cargo bench --quiet --no-default-features --bench peers --no-run
exec "$PEERS_PYTHON" benches/peers/compare.py "$@"

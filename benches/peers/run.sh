#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [OPTION ...]: compares an evaluation with PyTorch's; the options go to compare.py (--help lists them).
# PEERS_PYTHON=PYTHON takes a Python that has the packages in requirements.txt instead of making target/peers.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/../.."

if [[ -z ${PEERS_PYTHON:-} ]]; then
    .ci/python.sh benches/peers/requirements.txt target/peers
    PEERS_PYTHON=target/peers/bin/python
fi
# compare.py starts this; build it beforehand.
cargo bench --quiet --no-default-features --bench peers --no-run
exec "$PEERS_PYTHON" benches/peers/compare.py "$@"

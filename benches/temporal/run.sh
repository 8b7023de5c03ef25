#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [OPTION ...]: compares the starts of a frame and plots them to target/temporal/temporal.svg; the options go to the
#   benchmark (main.rs).
# run.sh --flow [OPTION ...]: compares the time spent on motion with that of OpenCV's flow; the options go to flow.py (--help lists them).
# TEMPORAL_PYTHON=PYTHON takes a Python that has the packages in requirements.txt instead of making target/temporal/python.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/../.."
made=target/temporal
mkdir -p "$made"

if [[ -z ${TEMPORAL_PYTHON:-} ]]; then
    .ci/python.sh benches/temporal/requirements.txt "$made/python"
    TEMPORAL_PYTHON=$made/python/bin/python
fi
# Builds the benchmark before flow.py starts it.
cargo bench --quiet --bench temporal --no-run
if [[ ${1:-} == --flow ]]; then
    exec "$TEMPORAL_PYTHON" benches/temporal/flow.py "${@:2}"
fi
cargo bench --quiet --bench temporal -- --csv "$made/frames.csv" "$@"
"$TEMPORAL_PYTHON" benches/temporal/plot.py "$made/frames.csv" "$made/temporal.svg"

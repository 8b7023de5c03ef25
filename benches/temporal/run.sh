#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [OPTION ...]: compares the starts of a frame and plots them to target/temporal/temporal.svg; the options go to the
#   benchmark (main.rs).
# run.sh --flow [OPTION ...]: compares what is done about motion with OpenCV's flow; the options go to flow.py (--help lists them).
# TEMPORAL_PYTHON=PYTHON takes a Python that has the packages in requirements.txt instead of making target/temporal/python.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."
made=target/temporal
mkdir -p "$made"

make_environment() {
    local python=$made/python
    ! cmp --quiet "$here/requirements.txt" "$python/made-from" || return 0
    echo "Getting matplotlib and OpenCV into $python" >&2
    rm -rf "$python"
    python3 -m venv "$python"
    "$python/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$python/made-from"
}

if [[ -z ${TEMPORAL_PYTHON:-} ]]; then
    make_environment
    TEMPORAL_PYTHON=$made/python/bin/python
fi
# flow.py starts it, and is to find it built.
cargo bench --quiet --bench temporal --no-run
if [[ ${1:-} == --flow ]]; then
    exec "$TEMPORAL_PYTHON" benches/temporal/flow.py "${@:2}"
fi
cargo bench --quiet --bench temporal -- --csv "$made/frames.csv" "$@"
"$TEMPORAL_PYTHON" benches/temporal/plot.py "$made/frames.csv" "$made/temporal.svg"

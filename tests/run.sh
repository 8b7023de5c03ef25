#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [ARGUMENT ...]: sets up what is missing and runs every test; the arguments go to cargo test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pipelines/setup.sh python3-venv curl
.ci/python.sh weights/requirements.txt target/python
if [[ -d ../shared/data ]]; then
    echo "../shared/data is there: the tests on its files run too"
else
    echo "../shared/data is not there: the tests on its files are left out, the sample clip serves the others"
fi
G_DEBUG=fatal_warnings exec cargo test --release "$@"

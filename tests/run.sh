#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# run.sh [ARGUMENT ...]: sets up what is missing and runs every test; the arguments go to cargo test.
set -euo pipefail
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."

pipelines/setup.sh python3-venv curl
.ci/python.sh weights/requirements.txt target/python
if [[ -d ../shared/data ]]; then
    echo "../shared/data is there: the tests on its files run too"
else
    echo "../shared/data is not there: the tests on its files are left out, the sample clip serves the others"
fi
case " $(grep -m 1 '^flags' /proc/cpuinfo 2>/dev/null) " in
    *" amx_bf16 "*) echo "this CPU has AMX: the tests in bf16 run on it" ;;
    *" avx512_bf16 "*) echo "this CPU has no AMX: it is emulated, and tests of whole paintings in bf16 are left out" ;;
    *) echo "this CPU has neither AMX nor AVX-512 BF16: tests of bf16 on the CPU are left out" ;;
esac
G_DEBUG=fatal_warnings exec cargo test --release "$@"

#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# Makes target/python, a Python with the packages that weights/convert.py needs, for its tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=target/python
! cmp --quiet weights/requirements.txt "$python/made-from" || exit 0
rm -rf "$python"
python3 -m venv "$python"
"$python/bin/pip" install --quiet --disable-pip-version-check --requirement weights/requirements.txt
cp weights/requirements.txt "$python/made-from"

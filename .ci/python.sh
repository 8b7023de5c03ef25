#!/usr/bin/env bash
# SPDX-License-Identifier: MPL-2.0
# python.sh REQUIREMENTS FOLDER: makes FOLDER a Python with the packages that the file REQUIREMENTS names, unless it is one.
set -euo pipefail
[[ $# == 2 ]] || { echo "usage: ${0##*/} REQUIREMENTS FOLDER" >&2; exit 2; }

# An environment serves only the Python that made it.
made_from=$(python3 --version && cat "$1")
[[ $(cat "$2/made-from" 2>/dev/null) != "$made_from" ]] || exit 0
echo "Getting the Python packages of $1 into $2" >&2
rm -rf "$2"
python3 -m venv "$2"
"$2/bin/pip" install --quiet --disable-pip-version-check --requirement "$1" >&2
echo "$made_from" >"$2/made-from"

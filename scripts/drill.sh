#!/usr/bin/env bash
# The crash drill: trains while it is killed, stopped, out of disk and damaged, and ends
# with the parameters of a run that nothing has interrupted. See scripts/drill.py --help.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" scripts/drill.py "$@"

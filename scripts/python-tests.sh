#!/usr/bin/env bash
# python-tests.sh LIBRARY BINARY [pytest's options]: runs python/tests on a build, with .venv's Python.
set -euo pipefail
cd "$(dirname "$0")/.."
export SEQLOOM_LIBRARY=$1 SEQLOOM_BINARY=$2 PYTHONPATH=python
shift 2
if ! .venv/bin/python -c 'import pytest, torch' 2>/dev/null; then
  echo "python-tests: .venv has no pytest; scripts/setup.sh installs it from tests/requirements.txt"
  exit 77
fi
exec .venv/bin/python -m pytest python/tests "$@"

#!/usr/bin/env bash
# clang-tidy over our sources, or over the files that are named. clang cannot read g++'s precompiled header, so it gets
# the same commands with the header itself, and without OpenMP, whose header g++ keeps to itself.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build/release}
mkdir -p build/lint
cp "$build/CMakeFiles/seqloom.dir/cmake_pch.hxx" build/lint/precompiled.h
python3 - "$build" <<'PYTHON'
import json, os, re, sys
commands = json.load(open(f"{sys.argv[1]}/compile_commands.json"))
for entry in commands:
    command = re.sub(r"-include \S+cmake_pch.hxx", f"-include {os.getcwd()}/build/lint/precompiled.h", entry["command"])
    entry["command"] = re.sub(r"-Winvalid-pch|-fpch-preprocess|-Wno-maybe-uninitialized|-Werror|-fopenmp", "", command)
json.dump(commands, open("build/lint/compile_commands.json", "w"))
PYTHON
if [ $# -gt 0 ]; then printf '%s\n' "$@"; else git ls-files 'src/*.cpp'; fi |
  xargs -P "${JOBS:-$(nproc)}" -n 2 clang-tidy -p build/lint --quiet

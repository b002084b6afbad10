#!/usr/bin/env bash
# Installs what building and testing need on Debian 12 / Ubuntu; does nothing when all of it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  g++ cmake ninja-build ccache pkg-config                  # build
  libhwy-dev libtomlplusplus-dev libcli11-dev libfmt-dev   # SIMD, recipes, command line, messages
  nlohmann-json3-dev libpcre2-dev                          # JSON, Unicode regular expressions
  libcpp-httplib-dev                                       # seqloom serve
  libgtest-dev libbenchmark-dev                            # tests, benchmarks
  python3 python3-venv                                     # the torch wheel
  clang libclang-rt-14-dev clang-format clang-tidy         # fuzzing, format, lint
  bible-kjv bible-kjv-text                                 # the demo's text (public domain)
  chromium                                                 # looks at reports in a test
)
# libclang-rt's version follows the distribution's clang.
if ! apt-cache show libclang-rt-14-dev >/dev/null 2>&1 && command -v apt-cache >/dev/null; then
  packages=("${packages[@]/libclang-rt-14-dev/}")
fi

missing=()
for package in "${packages[@]}"; do
  [ -n "$package" ] || continue
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "setup: installing ${missing[*]}"
  sudo=""
  [ "$(id -u)" -eq 0 ] || sudo="sudo"
  $sudo apt-get update -qq || true  # the lists at hand may do
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
    echo "setup: that failed; CMake says what the build misses, tests without their tools are skipped" >&2
fi

# Torch: an installation that CMake is told of (Torch_DIR) wins; else the CPU wheel in .venv.
if [ -z "${Torch_DIR:-}" ] && ! ls .venv/lib/python3*/site-packages/torch/share/cmake/Torch/TorchConfig.cmake >/dev/null 2>&1; then
  echo "setup: installing torch 2.13.0 into .venv"
  python3 -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
fi

# What the Python tests need beside it; without, those tests skip. The copy says what was installed last.
requirements=(tests/requirements.txt tests/requirements-no-deps.txt)
installed=.venv/tests-requirements.txt
if [ -x .venv/bin/python ] && ! cat "${requirements[@]}" | cmp -s - "$installed"; then
  echo "setup: installing ${requirements[*]} into .venv"
  pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 15)
  if "${pip[@]}" -r "${requirements[0]}" && "${pip[@]}" --no-deps -r "${requirements[1]}"; then
    cat "${requirements[@]}" >"$installed"
  else
    echo "setup: that failed; tests that need these packages will be skipped" >&2
  fi
fi

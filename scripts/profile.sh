#!/usr/bin/env bash
# Where a training step of the demo model spends its time: samples by perf, summed by kind of work.
#   scripts/profile.sh [RECIPE] [STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
recipe=${1:-recipes/scripture.toml} steps=${2:-20}
command -v perf >/dev/null || { echo "profile: perf is not installed (apt install linux-perf)" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# One thread: an idle OpenMP thread spins, and its samples would count as work.
OMP_NUM_THREADS=1 perf record -q -F 499 -e cpu-clock -o "$folder/perf.data" build/release/seqloom train "$recipe" \
  --set "train.steps=$steps" --set train.eval_every=100000 --set train.save_every=100000 --out "$folder/run" \
  >"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
perf report -i "$folder/perf.data" --no-children --stdio --sort dso,symbol 2>/dev/null | awk '
  /^ *[0-9.]+%/ {
    kind = "other (allocation, libc, dynamic linking)"
    if ($2 ~ /kernel/) kind = "operating system (page faults)"
    if ($2 ~ /libtorch|libc10/) kind = "torch: elementwise, reductions, autograd"
    if ($2 ~ /libseqloom/) kind = "seqloom: fused kernels and the rest"
    if ($0 ~ /flash_attention/) kind = "attention (torch)"
    if ($0 ~ /gemm|gemv/) kind = "GEMM (torch)"
    sum[kind] += $1; total += $1
  }
  END { for (kind in sum) printf "%5.1f %%  %s\n", 100 * sum[kind] / total, kind }' | sort -rn

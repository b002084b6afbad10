"""The limits of the machine that no kernel passes: products of matrices, reading of memory; and matrix times vector.

    python benchmarks/peers/limits.py build/release/libseqloom.so [--quick] [--json FILE]

A matrix times a vector is what decoding one row asks for. seqloom leaves it to torch and has no kernel of its own yet.
"""
import statistics

import torch
import torch.nn.functional as F
from common import begin, finish, gemm_flops, note, read_bandwidth, seconds, table

TYPES = (torch.float32, torch.bfloat16)


def vector_rate(dtype, threads):
    """Bytes/s at which torch's linear layer reads a matrix of 256 MiB for one row."""
    matrix = torch.ones(8192, (256 << 20) // 8192 // dtype.itemsize, dtype=dtype)
    x = matrix[:1].clone()
    F.linear(x, matrix)
    return matrix.nbytes / statistics.median(seconds(lambda: F.linear(x, matrix), threads) for _ in range(7))


def main():
    options = begin(__doc__)
    title = "Products of 1024 x 1024 matrices, reading of 1 GiB, 256 MiB times a vector; two threads by the wall"
    rows = table(title, "threads", "float32 GFLOP/s", "bfloat16 GFLOP/s", "read GB/s", "float32 vector GB/s",
                 "bfloat16 vector GB/s", "of reading")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        read = read_bandwidth(threads)
        vectors = [vector_rate(dtype, threads) for dtype in TYPES]
        rows.add(threads, *(f"{gemm_flops(dtype, threads) / 1e9:.0f}" for dtype in TYPES),
                 *(f"{rate / 1e9:.1f}" for rate in (read, *vectors)), f"{vectors[1] / read:.0%}")
    note("seqloom has no kernel of its own for a matrix times a vector: torch's figures are its own, a ratio of 1")
    finish(options)


if __name__ == "__main__":
    main()

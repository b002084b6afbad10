"""The limits of the machine that no kernel passes: products of matrices, reading of memory; and matrix times vector.

    python benchmarks/peers/limits.py build/release/libseqloom.so [--quick] [--json FILE]

A matrix times a few vectors is what decoding asks for: seqloom's linear op by the format of the weights, beside torch's
linear layer of the same weights. Torch has no int8 weights with float32 inputs; there its float32 layer stands.
"""
import torch
import torch.nn.functional as F
from common import begin, finish, gemm_flops, paired, read_bandwidth, seconds, table

TYPES = (torch.float32, torch.bfloat16)
MATRICES = 28  # of 768 x 3072 float32: 256 MiB, so that they come from memory


def limits():
    title = "Products of 1024 x 1024 matrices, reading of 1 GiB; two threads by the wall"
    rows = table(title, "threads", "float32 GFLOP/s", "bfloat16 GFLOP/s", "read GB/s")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        rows.add(threads, *(f"{gemm_flops(dtype, threads) / 1e9:.0f}" for dtype in TYPES),
                 f"{read_bandwidth(threads) / 1e9:.1f}")


def int8_weights(weight, group):
    """Entries of -127..127 and the scale of each group of columns."""
    groups = weight.unflatten(-1, (-1, group or weight.shape[-1]))
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (groups / scale).round().to(torch.int8).flatten(-2), scale.squeeze(-1)


def formats():
    weights = [0.02 * torch.randn(3072, 768) for _ in range(MATRICES)]
    yield "float32", weights, [(w, None) for w in weights]
    bfloat16 = [w.bfloat16() for w in weights]
    yield "bfloat16", bfloat16, [(w, None) for w in bfloat16]
    for name, group in (("int8", 0), ("int8, groups of 64", 64)):
        yield name, weights, [int8_weights(w, group) for w in weights]


def vectors(options):
    torch.set_num_threads(1)
    title = "Vectors times 768 x 3072 matrices that come from memory (28 of them), us a product of all vectors"
    rows = table(title, "weights", "vectors", "torch", "seqloom", "ratio", "weights GB/s")
    for name, theirs, ours in formats():
        size = sum(t.nbytes for t in ours[0] if t is not None)
        for count in (1, 4, 16):
            x = torch.randn(count, 768)
            narrow = x.to(theirs[0].dtype)
            both = paired(lambda: seconds(lambda: [F.linear(narrow, w) for w in theirs]) / MATRICES,
                          lambda: seconds(lambda: [torch.ops.seqloom.linear(x, w, s) for w, s in ours]) / MATRICES,
                          options.pairs)
            rows.add(name, count, f"{both.slow * 1e6:.0f}", f"{both.fast * 1e6:.0f}", f"{both.ratio:.2f}",
                     f"{size / both.fast / 1e9:.1f}")


def main():
    options = begin(__doc__)
    limits()
    vectors(options)
    finish(options)


if __name__ == "__main__":
    main()

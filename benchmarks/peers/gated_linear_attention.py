"""Gated linear attention by chunks against plain PyTorch, in one process.

    python benchmarks/peers/gated_linear_attention.py build/release/libseqloom.so [--quick]

Peers: a chunked form in a loop over chunks with one gate a head (the way flash-linear-attention's plain fallback goes on
a CPU), the same with a gate for each key channel, and seqloom's own reference in tensor algebra. Peer and kernel run in
turn and each ratio is that of one pair. One thread is timed in CPU seconds of the process. The limit is what the
products of a chunk cost at the rate of a GEMM of 1024.
"""
import argparse
import statistics
import time

import torch

HEADS, KEYS, VALUES, CHUNK = 8, 64, 64, 64


def chunked(q, k, v, gate):
    """o [B, H, T, V]; q, k [B, H, T, K], v [B, H, T, V], gate [B, H, T] or [B, H, T, K]."""
    scale = q.size(-1) ** -0.5
    state = q.new_zeros(q.size(0), q.size(1), q.size(3), v.size(3))
    mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    outputs = []
    for q_c, k_c, v_c, g_c in zip(*(t.split(CHUNK, 2) for t in (q * scale, k, v, gate))):
        sums = g_c.cumsum(2)
        if gate.dim() == 3:
            decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(~mask, float("-inf")).exp()
            scores = (q_c @ k_c.transpose(-1, -2)) * decay
            sums = sums.unsqueeze(-1)
        else:
            scores = ((q_c * sums.exp()) @ (k_c * (-sums).exp()).transpose(-1, -2)).masked_fill(~mask, 0)
        outputs.append(scores @ v_c + (q_c * sums.exp()) @ state)
        total = sums[:, :, -1:]
        state = state * total.exp().transpose(-1, -2) + (k_c * (total - sums).exp()).transpose(-1, -2) @ v_c
    return torch.cat(outputs, 2)


def peer(q, k, v, gate):
    return chunked(*(t.transpose(1, 2) for t in (q, k, v, gate))).transpose(1, 2)


def seqloom(q, k, v, gate):
    return torch.ops.seqloom.gated_linear_attention(q, k, v, gate, KEYS ** -0.5)[0]


def make_inputs(tokens, vector, gradients):
    def rows(*shape):
        return torch.randn(1, tokens, HEADS, *shape).requires_grad_(gradients)

    gate = torch.nn.functional.logsigmoid(torch.randn(1, tokens, HEADS, *([KEYS] if vector else []))) / 16
    return rows(KEYS), rows(KEYS), rows(VALUES), gate.requires_grad_(gradients)


def seconds(run, inputs, gradients):
    begin = time.process_time()
    o = run(*inputs)
    if gradients:
        o.sum().backward()
    return time.process_time() - begin


def gemm_rate():
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(5):
        begin = time.process_time()
        a @ b
        times.append(time.process_time() - begin)
    return 2 * 1024 ** 3 / statistics.median(times)


def compare(tokens, vector, gradients, pairs, rate):
    with torch.no_grad():
        inputs = make_inputs(tokens, vector, False)
        torch.testing.assert_close(seqloom(*inputs), peer(*inputs), rtol=1e-3, atol=1e-3)
    slow, fast = [], []
    for _ in range(pairs):
        slow.append(seconds(peer, make_inputs(tokens, vector, gradients), gradients))
        fast.append(seconds(seqloom, make_inputs(tokens, vector, gradients), gradients))
    ratio = statistics.median(a / b for a, b in zip(slow, fast))
    # a chunk's products: q k^T and A v (half of each), q S, k^T v; the backward pass has these and nine more, three halved
    flops = HEADS * CHUNK * (2 * KEYS * VALUES * 2 + CHUNK * (KEYS + VALUES)) / CHUNK
    if gradients:
        flops += HEADS * (2 * KEYS * VALUES * 4 + CHUNK * (3 * KEYS + 2 * VALUES))
    limit = rate / flops
    what = ("vector gates, " if vector else "scalar gates, ") + ("forward+backward" if gradients else "forward")
    print(f"T={tokens:6d} {what:31s} peer {tokens / statistics.median(slow):8.0f} tokens/s   "
          f"seqloom {tokens / statistics.median(fast):8.0f} tokens/s   ratio {ratio:5.1f}   "
          f"{tokens / statistics.median(fast) / limit:4.0%} of the GEMM limit", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="path of libseqloom.so")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    options = parser.parse_args()
    torch.ops.load_library(options.library)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rate = gemm_rate()
    print(f"gated linear attention, H={HEADS} K={KEYS} V={VALUES}, one thread, CPU time; GEMM {rate / 1e9:.0f} GFLOP/s")
    for tokens in (1024, 4096) if options.quick else (1024, 4096, 16384):
        for vector in (False, True):
            for gradients in (False, True):
                compare(tokens, vector, gradients, 3 if options.quick else 7, rate)


if __name__ == "__main__":
    main()

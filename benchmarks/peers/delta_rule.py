"""The delta rule by chunks against plain PyTorch, in one process.

    python benchmarks/peers/delta_rule.py build/release/libseqloom.so [--quick]

The peer is the WY form in chunks of 64, its triangular system inverted row by row and a loop over chunks for the state
(the way flash-linear-attention's plain fallback goes on a CPU), with and without a gate a head; with SEQLOOM_FUSED=0 it
runs beside seqloom's own reference in tensor algebra. Peer and kernel run in turn and each ratio is that of one pair. One
thread is timed in CPU seconds of the process. The limit is what the products of a chunk cost at the rate of a GEMM of
1024.
"""
import argparse
import statistics
import time

import torch

HEADS, KEYS, VALUES, CHUNK = 8, 64, 64, 64


def inverse_of_unit_lower(lower):
    """(I + lower)^-1 of strictly lower [..., C, C], row by row."""
    rows = [torch.zeros_like(lower[..., 0, :])]
    for i in range(1, lower.size(-1)):
        row = -lower[..., i, :]
        above = torch.stack(rows, -2)
        rows.append(row + (row[..., None, :i] @ above).squeeze(-2))
    return torch.stack(rows, -2) + torch.eye(lower.size(-1))


def chunked(q, k, v, beta, gate):
    """o [B, H, T, V]; q, k [B, H, T, K], v [B, H, T, V], beta, gate [B, H, T], gate or None."""
    q, k, v, beta = (t.unflatten(2, (-1, CHUNK)) for t in (q * q.size(-1) ** -0.5, k, v, beta.unsqueeze(-1)))
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    sums = (torch.zeros_like(beta[..., 0]) if gate is None else gate.unflatten(2, (-1, CHUNK))).cumsum(-1)
    decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(~lower, float("-inf")).exp()
    from_start, to_end = sums.exp().unsqueeze(-1), (sums[..., -1:] - sums).exp().unsqueeze(-1)
    inverse = inverse_of_unit_lower((beta * k @ k.transpose(-1, -2) * decay).tril(-1))
    u, w = inverse @ (beta * v), inverse @ (beta * k * from_start)
    scores = (q @ k.transpose(-1, -2)) * decay
    state = q.new_zeros(q.size(0), q.size(1), q.size(-1), v.size(-1))
    outputs = []
    for a, q_in, k_out, u_c, w_c, total in zip(*(t.unbind(2) for t in (scores, q * from_start, k * to_end, u, w,
                                                                       from_start[..., -1:, :]))):
        written = u_c - w_c @ state
        outputs.append(q_in @ state + a @ written)
        state = state * total + k_out.transpose(-1, -2) @ written
    return torch.stack(outputs, 2).flatten(2, 3)


def peer(q, k, v, beta, gate):
    turned = (None if t is None else t.transpose(1, 2) for t in (q, k, v, beta, gate))
    return chunked(*turned).transpose(1, 2)


def seqloom(q, k, v, beta, gate):
    return torch.ops.seqloom.delta_rule(q, k, v, beta, gate, KEYS ** -0.5)[0]


def make_inputs(tokens, gated, gradients):
    def rows(*shape):
        return torch.randn(1, tokens, HEADS, *shape)

    keys = torch.nn.functional.normalize(rows(KEYS), dim=-1)
    gate = torch.nn.functional.logsigmoid(rows()) / 16 if gated else None
    inputs = rows(KEYS), keys, rows(VALUES), torch.sigmoid(rows()), gate
    return [None if t is None else t.requires_grad_(gradients) for t in inputs]


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


def compare(tokens, gated, gradients, pairs, rate):
    with torch.no_grad():
        inputs = make_inputs(tokens, gated, False)
        torch.testing.assert_close(seqloom(*inputs), peer(*inputs), rtol=1e-3, atol=1e-3)
    slow, fast = [], []
    for _ in range(pairs):
        slow.append(seconds(peer, make_inputs(tokens, gated, gradients), gradients))
        fast.append(seconds(seqloom, make_inputs(tokens, gated, gradients), gradients))
    ratio = statistics.median(a / b for a, b in zip(slow, fast))
    # a chunk's products: k S, q S and k^T v, half of k k^T, q k^T, A v and of the solve; the backward pass has six of
    # the first kind, and of halves two scores again, two of the values, two scores' gradients, four of keys and queries
    flops = HEADS * (2 * KEYS * VALUES * 3 + CHUNK * (2 * KEYS + 2 * VALUES))
    if gradients:
        flops += HEADS * (2 * KEYS * VALUES * 6 + CHUNK * (6 * KEYS + 4 * VALUES))
    limit = rate / flops
    what = ("gates, " if gated else "no gates, ") + ("forward+backward" if gradients else "forward")
    print(f"T={tokens:6d} {what:27s} peer {tokens / statistics.median(slow):8.0f} tokens/s   "
          f"seqloom {tokens / statistics.median(fast):8.0f} tokens/s   ratio {ratio:5.1f}   "
          f"{tokens / statistics.median(fast) / limit:4.0%} of the GEMM limit", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="path of libseqloom.so")
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    options = parser.parse_args()
    torch.ops.load_library(options.library)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rate = gemm_rate()
    print(f"delta rule, H={HEADS} K={KEYS} V={VALUES}, one thread, CPU time; GEMM {rate / 1e9:.0f} GFLOP/s")
    for tokens in (1024, 4096):
        for gated in (False, True):
            for gradients in (False, True):
                compare(tokens, gated, gradients, 3 if options.quick else 7, rate)


if __name__ == "__main__":
    main()

"""The fused selective scan against a plain PyTorch loop, in one process.

    python benchmarks/peers/selective_scan.py build/release/libseqloom.so [--quick]

The loop takes its tokens with unbind, so that its backward pass is linear in T; indexing `x[:, t]` would fill a
full-size gradient for every token. Loop and kernel run in turn and each ratio is that of one pair: neighbours on the
machine slow both. One thread is timed in CPU seconds of the process, two threads in wall time.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

STATES = 16


def loop(u, delta, A, B, C, D, z):
    """y [B, E, T] by the definition; u, delta, z [B, E, T], A [E, N], B, C [B, N, T], D [E]."""
    step = F.softplus(delta)
    h = u.new_zeros(u.size(0), u.size(1), A.size(1))
    outputs = []
    for u_t, step_t, B_t, C_t in zip(u.unbind(2), step.unbind(2), B.unbind(2), C.unbind(2)):
        decay = torch.exp(step_t.unsqueeze(-1) * A)
        h = decay * h + (step_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append((h * C_t.unsqueeze(1)).sum(-1))
    return (torch.stack(outputs, 2) + D.unsqueeze(-1) * u) * F.silu(z)


def fused(u, delta, A, B, C, D, z):
    return torch.ops.seqloom.selective_scan(u, delta, A, B, C, D, z, None, True)[0]


def make_inputs(channels, tokens, gradients):
    """Channel-major views of token-major memory, which is what a projection leaves."""
    def rows(width):
        return torch.randn(1, tokens, width).requires_grad_(gradients).transpose(1, 2)

    A = -torch.arange(1, STATES + 1, dtype=torch.float32).repeat(channels, 1)
    D = torch.ones(channels)
    u, delta, B, C, z = rows(channels), rows(channels) - 3, rows(STATES), rows(STATES), rows(channels)
    return u, delta, A.requires_grad_(gradients), B, C, D.requires_grad_(gradients), z


def seconds(scan, inputs, gradients, clock):
    begin = clock()
    y = scan(*inputs)
    if gradients:
        y.sum().backward()
    return clock() - begin


def compare(channels, tokens, gradients, pairs):
    inputs = make_inputs(channels, tokens, gradients)
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs), loop(*inputs), rtol=1e-3, atol=1e-3)
    ratios, slow, fast = [], [], []
    for _ in range(pairs):
        slow.append(seconds(loop, make_inputs(channels, tokens, gradients), gradients, time.process_time))
        fast.append(seconds(fused, make_inputs(channels, tokens, gradients), gradients, time.process_time))
        ratios.append(slow[-1] / fast[-1])
    what = "forward+backward" if gradients else "forward"
    print(f"E={channels:5d} T={tokens} {what:16s} loop {tokens / statistics.median(slow):9.0f} tokens/s   "
          f"fused {tokens / statistics.median(fast):9.0f} tokens/s   ratio {statistics.median(ratios):6.1f}", flush=True)


def rate(channels, tokens, gradients, clock, runs):
    times = [seconds(fused, make_inputs(channels, tokens, gradients), gradients, clock) for _ in range(runs + 1)]
    return tokens / statistics.median(times[1:])  # the first one warms up


def wall_of_threads(channels, tokens, gradients, runs):
    """Tokens/s of one and of two threads by the wall clock, the median ratio of runs in turn."""
    rates, ratios = {1: [], 2: []}, []
    for _ in range(runs):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            inputs = make_inputs(channels, tokens, gradients)
            rates[threads].append(tokens / seconds(fused, inputs, gradients, time.perf_counter))
        ratios.append(rates[2][-1] / rates[1][-1])
    torch.set_num_threads(1)
    return statistics.median(rates[1]), statistics.median(rates[2]), statistics.median(ratios)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="path of libseqloom.so")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    options = parser.parse_args()
    torch.ops.load_library(options.library)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pairs = 3 if options.quick else 7
    lengths = (1024, 4096) if options.quick else (1024, 2048, 4096, 8192, 16384)

    print("against the loop, one thread, CPU time")
    for channels in (512, 1536):
        for gradients in (False, True):
            compare(channels, 2048, gradients, pairs)
    print("length, one thread, CPU time")
    for channels in (512, 1536):
        for gradients in (False, True):
            what = "forward+backward" if gradients else "forward"
            rates = [rate(channels, tokens, gradients, time.process_time, pairs) for tokens in lengths]
            row = "  ".join(f"T={tokens} {r / 1000:6.0f}k" for tokens, r in zip(lengths, rates))
            print(f"E={channels:5d} {what:16s} {row}", flush=True)
    print("threads, wall time")
    for channels in (512, 1536):
        for gradients in (False, True):
            what = "forward+backward" if gradients else "forward"
            one, two, ratio = wall_of_threads(channels, 4096, gradients, pairs)
            print(f"E={channels:5d} {what:16s} one {one / 1000:6.0f}k  two {two / 1000:6.0f}k  ratio {ratio:4.2f}", flush=True)


if __name__ == "__main__":
    main()

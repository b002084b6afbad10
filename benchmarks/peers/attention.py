"""The fused attention of packed rows against torch's scaled_dot_product_attention, in one process.

    python benchmarks/peers/attention.py build/release/libseqloom.so [--quick] [--threads N]

Both run in turn and each ratio is that of one pair: neighbours on the machine slow both. One thread is timed in CPU
seconds of the process, more threads in wall time. GFLOP/s count the visible half of a causal score matrix.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

HEADS, WIDTH = 8, 64


def peer(q, k, v, lengths, causal):
    """Rows of one length as a batch; of different lengths padded, with a mask, as without packing."""
    if len(set(lengths)) == 1:
        rows = [x.unflatten(0, (len(lengths), lengths[0])).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(*rows, is_causal=causal).transpose(1, 2).flatten(0, 1)
    padded = [torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2) for x in (q, k, v)]
    keep = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    o = F.scaled_dot_product_attention(*padded, attn_mask=keep[:, None, None])
    return o.transpose(1, 2)[keep]


def fused(q, k, v, lengths, causal):
    offsets = torch.tensor([0] + lengths).cumsum(0)
    return torch.ops.seqloom.varlen_attention(q, k, v, offsets, offsets, causal)[0]


def make_inputs(tokens, dtype, gradients):
    return [torch.randn(tokens, HEADS, WIDTH, dtype=dtype).requires_grad_(gradients) for _ in range(3)]


def seconds(attention, inputs, cotangent, lengths, causal, clock, repeats):
    begin = clock()
    for _ in range(repeats):
        o = attention(*inputs, lengths, causal)
        if cotangent is not None:
            torch.autograd.grad(o, inputs, cotangent)
    return (clock() - begin) / repeats


def compare(lengths, dtype, gradients, causal, pairs, clock):
    inputs = make_inputs(sum(lengths), dtype, gradients)
    cotangent = torch.randn_like(inputs[0]) if gradients else None
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(fused(*inputs, lengths, causal), peer(*inputs, lengths, causal), rtol=tolerance,
                               atol=tolerance)
    slow, fast, ratios = [], [], []
    work = sum(n * n for n in lengths) * 4 * WIDTH * HEADS * (3.5 if gradients else 1) / (2 if causal else 1)
    repeats = max(1, int(1e9 / work))
    for _ in range(pairs):
        slow.append(seconds(peer, inputs, cotangent, lengths, causal, clock, repeats))
        fast.append(seconds(fused, inputs, cotangent, lengths, causal, clock, repeats))
        ratios.append(slow[-1] / fast[-1])
    rate = [work / statistics.median(times) / 1e9 for times in (slow, fast)]
    print(f"{str(dtype)[6:]:9s} {'forward+backward' if gradients else 'forward':16s} torch {rate[0]:6.0f} GFLOP/s   "
          f"fused {rate[1]:6.0f} GFLOP/s   ratio {statistics.median(ratios):5.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="path of libseqloom.so")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.ops.load_library(options.library)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    pairs = 3 if options.quick else 9

    for tokens in (128, 256, 512, 1024, 2048, 4096) if options.quick else (128, 256, 512, 1024, 2048, 4096, 8192):
        print(f"causal, B=1 H={HEADS} d={WIDTH} T={tokens}")
        for dtype in (torch.float32, torch.bfloat16):
            for gradients in (False, True):
                compare([tokens], dtype, gradients, True, pairs, clock)
    for longest, batch in ((128, 8), (384, 4)):
        lengths = torch.randint(longest // 5, longest + 1, (batch,)).tolist()
        print(f"bidirectional, packed against padded, lengths {lengths}")
        for dtype in (torch.float32, torch.bfloat16):
            for gradients in (False, True):
                compare(lengths, dtype, gradients, False, pairs, clock)


if __name__ == "__main__":
    main()

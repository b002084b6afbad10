"""The fused attention of packed rows against torch's scaled_dot_product_attention, in one process.

    python benchmarks/peers/attention.py build/release/libseqloom.so [--quick] [--threads N] [--json FILE]

GFLOP/s count the visible half of a causal score matrix.
"""
import torch
import torch.nn.functional as F
from common import begin, finish, gemm_flops, paired, passes, seconds, table

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
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.ops.seqloom.varlen_attention(q, k, v, offsets, offsets, causal)[0]


def make_inputs(tokens, dtype, gradients):
    return [torch.randn(tokens, HEADS, WIDTH, dtype=dtype).requires_grad_(gradients) for _ in range(3)]


def compare(rows, what, lengths, dtype, gradients, causal, options, gemm):
    inputs = make_inputs(sum(lengths), dtype, gradients)
    cotangent = torch.randn_like(inputs[0]) if gradients else None
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(fused(*inputs, lengths, causal), peer(*inputs, lengths, causal), rtol=tolerance,
                               atol=tolerance)
    flops = sum(n * n for n in lengths) * 4 * WIDTH * HEADS * (3.5 if gradients else 1) / (2 if causal else 1)

    def timed(attention):
        def work():
            o = attention(*inputs, lengths, causal)
            if gradients:
                torch.autograd.grad(o, inputs, cotangent)

        return seconds(work, options.threads, max(1, int(1e9 / flops)))

    both = paired(lambda: timed(peer), lambda: timed(fused), options.pairs)
    rows.add(what, str(dtype)[6:], passes(gradients), *(f"{flops / time / 1e9:.0f}" for time in (both.slow, both.fast)),
             f"{both.ratio:.2f}", f"{flops / both.fast / gemm[dtype]:.0%}")


def main():
    options = begin(__doc__)
    dtypes = (torch.float32, torch.bfloat16)
    gemm = {dtype: gemm_flops(dtype, options.threads) for dtype in dtypes}
    limit = f"the limit is a GEMM of 1024: {', '.join(f'{str(d)[6:]} {gemm[d] / 1e9:.0f} GFLOP/s' for d in dtypes)}"
    columns = ("type", "pass", "torch GFLOP/s", "seqloom GFLOP/s", "ratio", "of the limit")
    rows = table(f"Causal, B = 1, H = {HEADS}, d = {WIDTH}; {limit}", "T", *columns)
    for tokens in (128, 256, 512, 1024, 2048, 4096) if options.quick else (128, 256, 512, 1024, 2048, 4096, 8192):
        for dtype in dtypes:
            for gradients in (False, True):
                compare(rows, tokens, [tokens], dtype, gradients, True, options, gemm)
    rows = table("Bidirectional, packed against padded rows", "lengths", *columns)
    for longest, batch in ((128, 8), (384, 4)):
        lengths = torch.randint(longest // 5, longest + 1, (batch,)).tolist()
        for dtype in dtypes:
            for gradients in (False, True):
                compare(rows, " ".join(map(str, lengths)), lengths, dtype, gradients, False, options, gemm)
    finish(options)


if __name__ == "__main__":
    main()

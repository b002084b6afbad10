"""Gated linear attention by chunks against plain PyTorch, in one process.

    python benchmarks/peers/gated_linear_attention.py build/release/libseqloom.so [--quick] [--json FILE]

Peers, own code after the way flash-linear-attention's plain fallbacks go on a CPU, with one gate a head and with one
for each key channel: a loop over tokens; a loop over chunks that are indexed in the inputs and assigned in the output,
as there, whose gradients cost more with every chunk; and "chunks", the same split and concatenated, a stronger peer.
The limit is what the products of a chunk cost at the rate of a GEMM of 1024.
"""
from functools import partial

import torch
from common import begin, finish, gemm_flops, paired, passes, rate, seconds, table

HEADS, KEYS, VALUES, CHUNK = 8, 64, 64, 64


def indexed(x):
    """The chunks of x [B, H, T, ...] by index: each one's gradient fills a tensor of the size of x."""
    x = x.unflatten(2, (-1, CHUNK))
    return (x[:, :, i] for i in range(x.size(2)))


def chunked(q, k, v, gate, chunks_of=lambda x: x.split(CHUNK, 2), assign=False):
    """o [B, H, T, V]; q, k [B, H, T, K], v [B, H, T, V], gate [B, H, T] or [B, H, T, K]."""
    scale = q.size(-1) ** -0.5
    state = q.new_zeros(q.size(0), q.size(1), q.size(3), v.size(3))
    mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    outputs = []
    for q_c, k_c, v_c, g_c in zip(*(chunks_of(t) for t in (q * scale, k, v, gate))):
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
    if not assign:
        return torch.cat(outputs, 2)
    o = torch.zeros_like(v)
    for i, o_c in enumerate(outputs):
        o[:, :, i * CHUNK : (i + 1) * CHUNK] = o_c
    return o


def recurrent(q, k, v, gate):
    """The same token by token, as flash-linear-attention's reference loop goes."""
    decay = (gate if gate.dim() == 4 else gate.unsqueeze(-1)).exp().unsqueeze(-1)
    state = q.new_zeros(q.size(0), q.size(1), q.size(3), v.size(3))
    outputs = []
    for q_t, k_t, v_t, decay_t in zip(*(t.unbind(2) for t in (q * q.size(-1) ** -0.5, k, v, decay))):
        state = decay_t * state + k_t.unsqueeze(-1) * v_t.unsqueeze(-2)
        outputs.append((q_t.unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 2)


def token_major(form):
    return lambda *inputs: form(*(t.transpose(1, 2) for t in inputs)).transpose(1, 2)


def seqloom(q, k, v, gate):
    return torch.ops.seqloom.gated_linear_attention(q, k, v, gate, KEYS ** -0.5)[0]


def make_inputs(tokens, vector, gradients):
    def rows(*shape):
        return torch.randn(1, tokens, HEADS, *shape).requires_grad_(gradients)

    gate = torch.nn.functional.logsigmoid(torch.randn(1, tokens, HEADS, *([KEYS] if vector else []))) / 16
    return rows(KEYS), rows(KEYS), rows(VALUES), gate.requires_grad_(gradients)


def timed(form, tokens, vector, gradients):
    inputs = make_inputs(tokens, vector, gradients)

    def work():
        o = form(*inputs)
        if gradients:
            o.sum().backward()

    return seconds(work)


def compare(rows, name, form, tokens, vector, gradients, options, gemm):
    form = token_major(form)
    with torch.no_grad():
        inputs = make_inputs(tokens, vector, False)
        torch.testing.assert_close(seqloom(*inputs), form(*inputs), rtol=1e-3, atol=1e-3)
    both = paired(*(partial(timed, f, tokens, vector, gradients) for f in (form, seqloom)), options.pairs)
    # a chunk's products: q k^T and A v (half of each), q S, k^T v; backward these and nine more, three halved
    flops = HEADS * CHUNK * (2 * KEYS * VALUES * 2 + CHUNK * (KEYS + VALUES)) / CHUNK
    if gradients:
        flops += HEADS * (2 * KEYS * VALUES * 4 + CHUNK * (3 * KEYS + 2 * VALUES))
    rows.add(tokens, "a channel" if vector else "a head", passes(gradients), name, rate(tokens, both.slow),
             rate(tokens, both.fast), f"{both.ratio:.1f}", f"{tokens / both.fast * flops / gemm:.0%}")


def main():
    options = begin(__doc__)
    gemm = gemm_flops()
    rows = table(f"H = {HEADS}, K = {KEYS}, V = {VALUES}; the limit is a GEMM of 1024, {gemm / 1e9:.0f} GFLOP/s",
                 "T", "gates", "pass", "peer", "peer tokens/s", "seqloom tokens/s", "ratio", "of the limit")
    for vector in (False, True):
        for gradients in (False, True):
            compare(rows, "loop", recurrent, 1024, vector, gradients, options, gemm)
            assigned = partial(chunked, chunks_of=indexed, assign=True)
            compare(rows, "chunks, indexed as in fla", assigned, 4096, vector, gradients, options, gemm)
            for tokens in (1024, 4096) if options.quick else (1024, 4096, 16384):
                compare(rows, "chunks", chunked, tokens, vector, gradients, options, gemm)
    finish(options)


if __name__ == "__main__":
    main()

"""The delta rule by chunks against plain PyTorch, in one process.

    python benchmarks/peers/delta_rule.py build/release/libseqloom.so [--quick] [--json FILE]

The peer is the WY form in chunks of 64, its triangular system inverted row by row and a loop over chunks for the state
(the way flash-linear-attention's plain fallback goes on a CPU), with and without a gate a head; with SEQLOOM_FUSED=0 it
runs beside seqloom's own reference in tensor algebra. The limit is what the products of a chunk cost at the rate of a
GEMM of 1024.
"""
from functools import partial

import torch
from common import begin, finish, gemm_flops, paired, passes, rate, seconds, table

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


def timed(run, tokens, gated, gradients):
    inputs = make_inputs(tokens, gated, gradients)

    def work():
        o = run(*inputs)
        if gradients:
            o.sum().backward()

    return seconds(work)


def flops_of_token(gradients):
    """A chunk's products: k S, q S and k^T v, half of k k^T, q k^T, A v and of the solve; the backward pass has six
    of the first kind, and of halves two scores again, two of the values, two scores' gradients, four of keys and
    queries."""
    flops = 2 * KEYS * VALUES * 3 + CHUNK * (2 * KEYS + 2 * VALUES)
    if gradients:
        flops += 2 * KEYS * VALUES * 6 + CHUNK * (6 * KEYS + 4 * VALUES)
    return HEADS * flops


def compare(rows, tokens, gated, gradients, pairs, limit):
    with torch.no_grad():
        inputs = make_inputs(tokens, gated, False)
        torch.testing.assert_close(seqloom(*inputs), peer(*inputs), rtol=1e-3, atol=1e-3)
    both = paired(*(partial(timed, run, tokens, gated, gradients) for run in (peer, seqloom)), pairs)
    rows.add(tokens, "one a head" if gated else "none", passes(gradients), rate(tokens, both.slow),
             rate(tokens, both.fast), f"{both.ratio:.1f}",
             f"{tokens / both.fast * flops_of_token(gradients) / limit:.0%}")


def main():
    options = begin(__doc__)
    limit = gemm_flops()
    rows = table(f"Delta rule in chunks, H = {HEADS}, K = V = {KEYS}", "T", "gates", "pass", "peer tokens/s",
                 "seqloom tokens/s", "ratio", "of GEMM")
    for tokens in (1024, 4096):
        for gated in (False, True):
            for gradients in (False, True):
                compare(rows, tokens, gated, gradients, options.pairs, limit)
    finish(options)


if __name__ == "__main__":
    main()

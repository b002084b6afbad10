"""The fused selective scan against what PyTorch offers for it: a loop, mamba.py's parallel scan, a compiled chunk form.

    python benchmarks/peers/selective_scan.py build/release/libseqloom.so [--quick] [--json FILE]

The reference loop is mamba-ssm's, with decay and input of all tokens made first, [B, T, E, N], and its tokens from
unbind, so that its backward pass is linear in T; indexing `x[:, t]` would fill a full-size gradient for every token.
The lean loop makes them token by token and never holds [B, T, E, N].
"""
import statistics
from functools import partial

import torch
import torch.nn.functional as F
from common import begin, finish, paired, passes, peer, rate, seconds, table

STATES, CHUNK = 16, 16


def reference_loop(u, delta, A, B, C, D, z):
    """y [B, E, T] by the definition; u, delta, z [B, E, T], A [E, N], B, C [B, N, T], D [E]."""
    step = F.softplus(delta).transpose(1, 2).unsqueeze(-1)
    decay = torch.exp(step * A)
    added = step * u.transpose(1, 2).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(2)
    h = u.new_zeros(u.size(0), u.size(1), A.size(1))
    outputs = []
    for decay_t, added_t, C_t in zip(decay.unbind(1), added.unbind(1), C.unbind(2)):
        h = decay_t * h + added_t
        outputs.append((h * C_t.unsqueeze(1)).sum(-1))
    return (torch.stack(outputs, 2) + D.unsqueeze(-1) * u) * F.silu(z)


def lean_loop(u, delta, A, B, C, D, z):
    step = F.softplus(delta)
    h = u.new_zeros(u.size(0), u.size(1), A.size(1))
    outputs = []
    for u_t, step_t, B_t, C_t in zip(u.unbind(2), step.unbind(2), B.unbind(2), C.unbind(2)):
        decay = torch.exp(step_t.unsqueeze(-1) * A)
        h = decay * h + (step_t * u_t).unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append((h * C_t.unsqueeze(1)).sum(-1))
    return (torch.stack(outputs, 2) + D.unsqueeze(-1) * u) * F.silu(z)


def chunk_step(h, u, delta, A, B, C, D, z):
    """The loop over one chunk, channels last so that they fill vector lanes: h [B, N, E], u, delta, z [B, t, E],
    A [N, E], B, C [B, t, N], D [E] -> h, y [B, t, E]."""
    step = F.softplus(delta)
    x = step * u
    states = []
    for t in range(u.size(1)):
        h = torch.exp(step[:, t, None] * A) * h + x[:, t, None] * B[:, t, :, None]
        states.append(h)
    return h, (torch.einsum("btne,btn->bte", torch.stack(states, 1), C) + D * u) * F.silu(z)


def compiled_chunks():
    """The loop that torch.compile unrolls over CHUNK tokens, which was fastest among 8 to 64."""
    torch.compiler.reset()
    step = torch.compile(chunk_step, dynamic=False)

    def scan(u, delta, A, B, C, D, z):
        A = A.t().contiguous()
        h, outputs = u.new_zeros(u.size(0), A.size(0), A.size(1)), []
        for u_c, delta_c, B_c, C_c, z_c in zip(*(t.transpose(1, 2).split(CHUNK, 1) for t in (u, delta, B, C, z))):
            h, y = step(h, u_c, delta_c, A, B_c, C_c, D, z_c)
            outputs.append(y)
        return torch.cat(outputs, 1).transpose(1, 2)

    return scan


def parallel(pscan):
    """mamba.py's form: every state of every token at once, [B, T, E, N]."""
    def scan(u, delta, A, B, C, D, z):
        step = F.softplus(delta).transpose(1, 2).unsqueeze(-1)
        x = step * u.transpose(1, 2).unsqueeze(-1) * B.transpose(1, 2).unsqueeze(2)
        h = pscan(torch.exp(step * A), x)
        y = (h @ C.transpose(1, 2).unsqueeze(-1)).squeeze(3).transpose(1, 2)
        return (y + D.unsqueeze(-1) * u) * F.silu(z)

    return scan


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


def timed(scan, channels, tokens, gradients, threads=1):
    inputs = make_inputs(channels, tokens, gradients)

    def work():
        y = scan(*inputs)
        if gradients:
            y.sum().backward()

    return seconds(work, threads)


def compare(rows, name, scan, channels, tokens, gradients, pairs):
    inputs = make_inputs(channels, tokens, gradients)
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs), scan(*inputs), rtol=1e-3, atol=1e-3)
    both = paired(*(partial(timed, form, channels, tokens, gradients) for form in (scan, fused)), pairs)
    rows.add(channels, tokens, passes(gradients), name, rate(tokens, both.slow), rate(tokens, both.fast),
             f"{both.ratio:.1f}")


def compare_peers(options):
    rows = table("Against PyTorch, one thread", "E", "T", "pass", "peer", "peer tokens/s", "seqloom tokens/s", "ratio")
    pscan = peer("mambapy.pscan")
    tokens = 1024 if options.quick else 2048
    for channels in (512, 1536):
        for gradients in (False, True):
            forms = {"reference loop": reference_loop, "lean loop": lean_loop,
                     "torch.compile, chunks": compiled_chunks()}
            if pscan:
                forms["mamba.py parallel scan"] = parallel(pscan.pscan)
            for name, form in forms.items():
                compare(rows, name, form, channels, tokens, gradients, options.pairs)


def lengths(options):
    sizes = (1024, 4096) if options.quick else (1024, 2048, 4096, 8192, 16384)
    rows = table("Tokens/s by length, one thread", "E", "pass", *(f"T = {tokens}" for tokens in sizes), "last / first")
    for channels in (512, 1536):
        for gradients in (False, True):
            times = {tokens: [] for tokens in sizes}
            for turn in range(options.pairs + 1):
                for tokens in sizes:
                    times[tokens].append(timed(fused, channels, tokens, gradients))
            speeds = [tokens / statistics.median(times[tokens][1:]) for tokens in sizes]  # the first turn warms up
            flat = f"{speeds[-1] / speeds[0]:.2f}"
            rows.add(channels, passes(gradients), *(rate(speed, 1) for speed in speeds), flat)


def threads(options):
    rows = table("Two threads over one, T = 4096, wall time", "E", "pass", "one, tokens/s", "two, tokens/s", "ratio")

    def wall(count, channels, gradients):
        torch.set_num_threads(count)
        return timed(fused, channels, 4096, gradients, 2)

    for channels in (512, 1536):
        for gradients in (False, True):
            both = paired(partial(wall, 1, channels, gradients), partial(wall, 2, channels, gradients), options.pairs)
            rows.add(channels, passes(gradients), rate(4096, both.slow), rate(4096, both.fast), f"{both.ratio:.2f}")
    torch.set_num_threads(1)


def main():
    options = begin(__doc__)
    compare_peers(options)
    lengths(options)
    threads(options)
    finish(options)


if __name__ == "__main__":
    main()

"""mamba_ssm.ops.triton.ssd_chunk_state: what each chunk of tokens adds to Mamba-2's state, in plain PyTorch."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def _chunk_cumsum_fwd(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> tuple[Tensor, Tensor]:
    """Make step sizes, and their sums times A inside each chunk, both float32 [B, H, C, L]; dt [B, T, H], A [H]."""
    step = dt.float() if dt_bias is None else dt.float() + dt_bias.float()
    step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit)
    step = chunked(step, chunk_size, 1).permute(0, 3, 1, 2)
    return (step * A.float()[:, None, None]).cumsum(-1), step


def _chunk_state_fwd(
    B: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    seq_idx: Tensor | None = None,
    states: Tensor | None = None,
    states_in_fp32: bool = True,
) -> Tensor:
    """`chunk_state`; with `seq_idx` [B, T] of the last sequence of each chunk alone, written to `states` if given."""
    if seq_idx is not None:
        x = x * _of_last_sequence(seq_idx, dt.shape[-1])[..., None, None].to(x.dtype)
    result = chunk_state(B, x, dt, dA_cumsum, states_in_fp32)
    return result if states is None else states.copy_(result)


def chunk_state(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, states_in_fp32: bool = True) -> Tensor:
    """Sum up what each chunk adds to the state.

    Parameters
    ----------
    B : Tensor [B, T, G, N]
    x : Tensor [B, T, H, P]
    dt, dA_cumsum : Tensor [B, H, C, L]
        Step sizes, and the sums of dt A from the beginning of each of C chunks of L tokens; C L >= T.
    states_in_fp32 : bool
        Return float32, else B's type.

    Returns
    -------
    Tensor [B, C, H, P, N]
    """
    states = chunk_state_ref(B.float(), x.float(), dt.float(), dA_cumsum.float())
    return states if states_in_fp32 else states.to(B.dtype)


def chunk_state_ref(B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor) -> Tensor:
    """`chunk_state` in x's type."""
    length = dt.shape[-1]
    weights = (dt * torch.exp(dA_cumsum[..., -1:] - dA_cumsum)).to(x.dtype).permute(0, 2, 3, 1)  # [B, C, L, H]
    b = chunked(per_head(B, x.shape[2]).to(x.dtype), length, 1)
    weighted = chunked(x, length, 1) * weights.unsqueeze(-1)
    return torch.einsum("bclhp,bclhn->bchpn", weighted, b)


def chunk_state_varlen(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, cu_seqlens: Tensor, chunk_states: Tensor
) -> Tensor:
    """Find the state at the end of each packed sequence.

    Parameters
    ----------
    B : Tensor [T, G, N]
    x : Tensor [T, H, P]
    dt, dA_cumsum : Tensor [H, C, L]
    cu_seqlens : Tensor [S + 1]
    chunk_states : Tensor [C, H, P, N]
        The state before each chunk, of the sequence that the chunk begins with.

    Returns
    -------
    Tensor [S, H, P, N]
    """
    length, b = dt.shape[-1], per_head(B.unsqueeze(0), x.shape[1]).squeeze(0).float()
    states = []
    for begin, end in pairwise(cu_seqlens.tolist()):
        if begin == end:
            states.append(torch.zeros_like(chunk_states[0]))
            continue
        chunk = (end - 1) // length
        first = max(begin, chunk * length)
        inside = slice(first - chunk * length, end - chunk * length)
        decay = dA_cumsum[:, chunk, inside].float()
        weights = dt[:, chunk, inside].float() * torch.exp(decay[:, -1:] - decay)
        state = torch.einsum("hl,lhp,lhn->hpn", weights, x[first:end].float(), b[first:end])
        if begin < chunk * length:
            state = state + torch.exp(decay[:, -1])[:, None, None] * chunk_states[chunk].float()
        states.append(state.to(chunk_states.dtype))
    return torch.stack(states)


def chunked(t: Tensor, length: int, dim: int) -> Tensor:
    """Dimension T as [C, length], padded with zeros."""
    missing = -t.shape[dim] % length
    if missing:
        t = torch.cat([t, t.new_zeros(*t.shape[:dim], missing, *t.shape[dim + 1 :])], dim)
    return t.unflatten(dim, (-1, length))


def per_head(m: Tensor, heads: int) -> Tensor:
    """B or C [B, T, G, N] as [B, T, H, N]."""
    return m.repeat_interleave(heads // m.shape[2], dim=2)


def _of_last_sequence(seq_idx: Tensor, length: int) -> Tensor:
    """Whether each token belongs to the sequence that its chunk ends with."""
    tokens = seq_idx.shape[1]
    ends = (torch.arange(tokens, device=seq_idx.device) // length * length + length - 1).clamp(max=tokens - 1)
    return seq_idx == seq_idx[:, ends]

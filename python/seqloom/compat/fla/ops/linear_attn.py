"""fla.ops.linear_attn: linear attention, with or without its normaliser."""

from __future__ import annotations

import torch
from torch import Tensor

from seqloom.compat._common import ops
from seqloom.compat.fla.ops._common import (
    check_packed,
    for_heads,
    linear_attention,
    parallel_form,
    recurrence,
    reversed_sequences,
)

__path__: list[str] = []  # fla.ops.linear_attn.chunk and the like are this module, see seqloom.compat

State = Tensor | tuple[Tensor | None, Tensor]
EPS = 1e-10


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | None]:
    """S_t = S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t, with `normalize` over scale q_t . z_t, z_t = z_{t-1} + k_t.

    Parameters
    ----------
    q, k : Tensor [B, T, H, K]
    v : Tensor [B, T, H, V]
    scale : float, optional
        K^-0.5 without it.
    initial_state : Tensor [N, H, K, V], or with `normalize` a pair of it and z [N, 1, H, K], optional
    output_final_state : bool
    normalize : bool
    cu_seqlens : Tensor [N + 1], optional
        Bounds of packed sequences in B = 1.

    Returns
    -------
    Tensor [B, T, H, V] of v's type, and the float32 state after the last token or None; with `normalize` a pair of
    this and z.
    """
    return fused_recurrent_linear_attn(q, k, v, scale, initial_state, output_final_state, False, normalize, cu_seqlens)


fused_chunk_linear_attn = chunk_linear_attn


def fused_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    normalize: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State | None]:
    """`chunk_linear_attn`, with `reverse` from the last token to the first; `normalize` is off unless asked for."""
    if not normalize:
        return linear_attention(
            q, k, v, None, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens, reverse=reverse
        )
    state, z = initial_state if isinstance(initial_state, tuple) else (initial_state, None)
    check_packed(q, cu_seqlens, state)
    q, k = for_heads(q, v.shape[2]), for_heads(k, v.shape[2])
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    z = None if z is None else z.squeeze(1)
    if reverse:
        q, k, v = (t.flip(1) for t in (q, k, v))
        z = reversed_sequences(z, cu_seqlens)[0]
        state, cu_seqlens = reversed_sequences(state, cu_seqlens)
    if (state is None) != (z is None):
        empty = q.new_zeros((q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1, *q.shape[2:]))
        state = empty.unsqueeze(-1).expand(*empty.shape, v.shape[-1]) if state is None else state
        z = empty if z is None else z
    o, state, z = ops.normalized_gated_linear_attention(q, k, v, None, scale, EPS, state, z, cu_seqlens)
    if reverse:
        o, state, z = o.flip(1), reversed_sequences(state, cu_seqlens)[0], reversed_sequences(z, cu_seqlens)[0]
    return o, (state if output_final_state else None, z.unsqueeze(1))


def naive_recurrent_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: State | None = None,
    output_final_state: bool = False,
    normalize: bool = False,
) -> tuple[Tensor, State | None]:
    """`fused_recurrent_linear_attn` token by token in plain PyTorch."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    start, z = initial_state if isinstance(initial_state, tuple) else (initial_state, None)
    o, state = recurrence(q, k, v, scale, start)
    if not normalize:
        return o.to(q.dtype), state if output_final_state else None
    sums = k.float().cumsum(1)
    sums = sums if z is None else sums + z
    o = o / ((scale * q.float() * sums).sum(-1, keepdim=True) + EPS)
    return o.to(q.dtype), (state, sums[:, -1:]) if output_final_state else None


def naive_chunk_linear_attn(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, normalize: bool = False
) -> Tensor:
    """`chunk_linear_attn` from a zero state as one matrix product, in plain PyTorch."""
    matrix = parallel_form(q, k, None, q.shape[-1] ** -0.5 if scale is None else scale)
    o = torch.einsum("bhts,bshv->bthv", matrix, v.float())
    if normalize:
        o = o / (matrix.sum(-1).transpose(1, 2).unsqueeze(-1) + EPS)
    return o.to(q.dtype)

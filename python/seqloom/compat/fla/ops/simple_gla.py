"""fla.ops.simple_gla: gated linear attention with one gate a head."""

from __future__ import annotations

import torch
from torch import Tensor

from seqloom.compat.fla.ops._common import check_packed, linear_attention, parallel_form, recurrence, take_keywords

__path__: list[str] = []  # fla.ops.simple_gla.chunk and the like are this module, see seqloom.compat


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """S_t = e^{g_t} S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t.

    Parameters
    ----------
    q, k : Tensor [B, T, H, K]
    v : Tensor [B, T, H, V]
    g : Tensor [B, T, H], optional
        Log gates <= 0.
    g_gamma : Tensor [H], optional
        The log gate of each head, the same at all tokens; not together with g.
    scale : float, optional
        K^-0.5 without it.
    initial_state : Tensor [N, H, K, V], optional
    output_final_state : bool
    state_v_first : bool
        States are [N, H, V, K].
    cu_seqlens : Tensor [N + 1], optional
        Bounds of packed sequences in B = 1.
    cu_seqlens_cpu : Tensor, optional
        Accepted and not needed.

    Returns
    -------
    Tensor [B, T, H, V] of v's type, and the float32 state after the last token or None.
    """
    state_v_first = take_keywords("chunk_simple_gla", kwargs, state_v_first)
    decay = _decay(v, g, g_gamma)
    return linear_attention(q, k, v, decay, scale, initial_state, output_final_state, state_v_first, cu_seqlens)


def fused_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla`."""
    return chunk_simple_gla(q, k, v, g, g_gamma, scale, initial_state, output_final_state, cu_seqlens=cu_seqlens)


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla`, with `reverse` from the last token to the first."""
    state_v_first = take_keywords("fused_recurrent_simple_gla", kwargs, state_v_first)
    decay = _decay(v, g, g_gamma)
    return linear_attention(
        q, k, v, decay, scale, initial_state, output_final_state, state_v_first, cu_seqlens, reverse
    )


def parallel_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla` from a zero state; returns o and, with `output_attentions`, its matrix [B, H, T, T]."""
    take_keywords("parallel_simple_gla", kwargs)
    check_packed(q, cu_seqlens, None)
    if output_attentions and cu_seqlens is not None:
        raise NotImplementedError("parallel_simple_gla: output_attentions does not go with cu_seqlens")
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    o, _ = linear_attention(q, k, v, g, scale, cu_seqlens=cu_seqlens)
    return o, parallel_form(q, k, g, scale).to(q.dtype) if output_attentions else None


def naive_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla` token by token in plain PyTorch."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, state = recurrence(q, k, v, scale, initial_state, g=g)
    return o.to(q.dtype), state if output_final_state else None


def naive_chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    chunk_size: int = 64,
    scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_simple_gla` chunk by chunk in plain PyTorch, in float32."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    state = q.new_zeros(shape, dtype=torch.float32) if initial_state is None else initial_state.float()
    outputs = []
    for q_c, k_c, v_c, g_c in zip(*(t.float().split(chunk_size, dim=1) for t in (q, k, v, g)), strict=True):
        sums = g_c.cumsum(1)
        inner = torch.einsum("bhts,bshv->bthv", parallel_form(q_c, k_c, g_c, scale), v_c)
        outer = torch.einsum("bthk,bhkv->bthv", scale * q_c * sums.exp().unsqueeze(-1), state)
        outputs.append(inner + outer)
        left = (sums[:, -1:] - sums).exp().unsqueeze(-1)
        state = sums[:, -1].exp()[..., None, None] * state + torch.einsum("bthk,bthv->bhkv", k_c * left, v_c)
    return torch.cat(outputs, dim=1), state if output_final_state else None


def naive_parallel_simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """`parallel_simple_gla` in plain PyTorch: o and its matrix, in float32."""
    matrix = parallel_form(q, k, g, q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bhts,bshv->bthv", matrix, v.float()), matrix


def _decay(v: Tensor, g: Tensor | None, g_gamma: Tensor | None) -> Tensor | None:
    """Log gates [B, T, H] or None."""
    if g_gamma is None:
        return g
    if g is not None:
        raise NotImplementedError("g and g_gamma: only one of them")
    return g_gamma.expand(*v.shape[:3])

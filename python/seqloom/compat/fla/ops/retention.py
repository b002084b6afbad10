"""fla.ops.retention: RetNet's retention, linear attention with a constant decay for each head (arXiv 2307.08621)."""

from __future__ import annotations

import torch
from torch import Tensor

from seqloom.compat.fla.ops._common import parallel_form, take_keywords
from seqloom.compat.fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla, parallel_simple_gla

__path__: list[str] = []  # fla.ops.retention.chunk and the like are this module, see seqloom.compat


def chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """S_t = (1 - 2^{-5-h}) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t, in head h.

    Parameters
    ----------
    q, k : Tensor [B, T, H, K]
    v : Tensor [B, T, H, V]
    scale : float, optional
        K^-0.5 without it.
    initial_state : Tensor [N, H, K, V], optional
    output_final_state : bool
    cu_seqlens : Tensor [N + 1], optional
        Bounds of packed sequences in B = 1.

    Returns
    -------
    Tensor [B, T, H, V] of v's type, and the float32 state after the last token or None.
    """
    state_v_first = take_keywords("chunk_retention", kwargs)
    return chunk_simple_gla(
        q, k, v, None, _gamma(q), scale, initial_state, output_final_state, state_v_first, cu_seqlens
    )


fused_chunk_retention = chunk_retention


def fused_recurrent_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_retention`; `reverse` from the last token to the first, `state_v_first` for states [N, H, V, K]."""
    state_v_first = take_keywords("fused_recurrent_retention", kwargs, state_v_first)
    return fused_recurrent_simple_gla(
        q, k, v, None, _gamma(q), scale, initial_state, output_final_state, reverse, state_v_first, cu_seqlens
    )


def parallel_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    output_attentions: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_retention` from a zero state; returns o and, with `output_attentions`, its matrix [B, H, T, T]."""
    take_keywords("parallel_retention", kwargs)
    return parallel_simple_gla(q, k, v, _gamma(q).expand(*q.shape[:3]), scale, output_attentions, cu_seqlens)


def naive_retention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Retention in plain PyTorch, for q, k [B, H, T, K] and v [B, H, T, V]."""
    rows, keys = q.transpose(1, 2), k.transpose(1, 2)
    matrix = parallel_form(rows, keys, _gamma(rows).expand(*rows.shape[:3]), q.shape[-1] ** -0.5)
    return (matrix @ v.float()).to(q.dtype)


def _gamma(q: Tensor) -> Tensor:
    """Make the log decay of each head, for q [B, T, H, K]."""
    heads = torch.arange(q.shape[2], dtype=torch.float32, device=q.device)
    return torch.log1p(-torch.exp2(-5 - heads))

"""fla.ops.gla: gated linear attention with a gate for each key channel (arXiv 2312.06635)."""

from __future__ import annotations

from torch import Tensor

from seqloom.compat.fla.ops._common import (
    check_packed,
    for_heads,
    linear_attention,
    packed_recurrence,
    recurrence,
    take_keywords,
    transposed,
)

__path__: list[str] = []  # fla.ops.gla.chunk and the like are this module, see seqloom.compat


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t.

    Parameters
    ----------
    q, k, g : Tensor [B, T, H, K]
        g <= 0, the log of the gates.
    v : Tensor [B, T, H, V]
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
    state_v_first = take_keywords("chunk_gla", kwargs, state_v_first)
    return linear_attention(q, k, v, g, scale, initial_state, output_final_state, state_v_first, cu_seqlens)


fused_chunk_gla = chunk_gla


def fused_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gla` with optional gates on keys and values, in either direction.

    Parameters
    ----------
    q, k, v, scale, initial_state, output_final_state, state_v_first, cu_seqlens
        As in `chunk_gla`.
    gk : Tensor [B, T, H, K], optional
    gv : Tensor [B, T, H, V], optional
        Log gates of the values; with them it goes token by token in plain PyTorch.
    reverse : bool
        From the last token to the first.

    Returns
    -------
    As in `chunk_gla`.
    """
    state_v_first = take_keywords("fused_recurrent_gla", kwargs, state_v_first)
    if gv is None:
        return linear_attention(
            q, k, v, gk, scale, initial_state, output_final_state, state_v_first, cu_seqlens, reverse
        )
    check_packed(q, cu_seqlens, initial_state)
    q, k = for_heads(q, v.shape[2]), for_heads(k, v.shape[2])
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    start = transposed(initial_state, state_v_first)
    o, state = packed_recurrence(q, k, v, scale, start, cu_seqlens, reverse, gk=gk, gv=gv)
    return o, transposed(state, state_v_first) if output_final_state else None


def naive_recurrent_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gk: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gla` token by token in plain PyTorch, with scale K^-0.5."""
    o, state = recurrence(q, k, v, q.shape[-1] ** -0.5, initial_state, gk=gk)
    return o.to(q.dtype), state if output_final_state else None

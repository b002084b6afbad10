"""fla.ops.delta_rule: DeltaNet's rule, which replaces the value stored under a key (arXiv 2406.06484)."""

from __future__ import annotations

import torch
from torch import Tensor

from seqloom.compat.fla.ops._common import recurrence, take_keywords
from seqloom.compat.fla.ops.gated_delta_rule import delta_rule, naive_chunk_gated_delta_rule

__path__: list[str] = []  # fla.ops.delta_rule.chunk and the like are this module, see seqloom.compat


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """u_t = beta_t (v_t - S_{t-1}^T k_t), S_t = S_{t-1} + k_t u_t^T, o_t = scale S_t^T q_t.

    Parameters
    ----------
    q, k : Tensor [B, T, H, K]
        Keys should have unit norm.
    v : Tensor [B, T, H, V]
    beta : Tensor [B, T, H]
    scale : float, optional
        K^-0.5 without it.
    initial_state : Tensor [N, H, K, V], optional
    output_final_state : bool
    use_qk_l2norm_in_kernel : bool
        Divide q and k by their norms, sqrt(sum x^2 + 1e-6).
    cu_seqlens : Tensor [N + 1], optional
        Bounds of packed sequences in B = 1.
    cu_seqlens_cpu : Tensor, optional
        Accepted and not needed.

    Returns
    -------
    Tensor [B, T, H, V] of v's type, and the float32 state after the last token or None.
    """
    take_keywords("chunk_delta_rule", kwargs)
    return delta_rule(
        q, k, v, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens
    )


def fused_recurrent_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_delta_rule`; beta may be [B, T, H, V], in plain PyTorch then, or None for 1."""
    take_keywords("fused_recurrent_delta_rule", kwargs)
    return delta_rule(
        q, k, v, beta, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, cu_seqlens=cu_seqlens
    )


fused_chunk_delta_rule = chunk_delta_rule


def delta_rule_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Apply the rule token by token in plain PyTorch; q, k [B, H, T, K], v [B, H, T, V], beta [B, H, T] or as v."""
    rows = (t.transpose(1, 2) for t in (q, k, v))
    o, state = recurrence(*rows, q.shape[-1] ** -0.5, initial_state, beta=beta.transpose(1, 2))
    return o.transpose(1, 2).to(q.dtype), state if output_final_state else None


def delta_rule_chunkwise(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, chunk_size: int = 32) -> tuple[Tensor, Tensor]:
    """Apply the rule chunk by chunk in plain PyTorch; shapes as in `delta_rule_recurrence`, beta [B, H, T]."""
    rows = [t.transpose(1, 2) for t in (q, k, v, torch.zeros_like(beta), beta)]
    o, state = naive_chunk_gated_delta_rule(*rows, chunk_size, output_final_state=True)
    return o.transpose(1, 2).to(q.dtype), state

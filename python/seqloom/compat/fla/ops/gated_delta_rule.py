"""fla.ops.gated_delta_rule: the delta rule with a gate (arXiv 2412.06464)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.compat._common import ops, refuse
from seqloom.compat.fla.ops._common import (
    check_packed,
    for_heads,
    packed_recurrence,
    parallel_form,
    recurrence,
    take_keywords,
    transposed,
)

__path__: list[str] = []  # fla.ops.gated_delta_rule.chunk and the like are this module, see seqloom.compat


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: object | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """S <- e^{g_t} S_{t-1}, u_t = beta_t (v_t - S^T k_t), S_t = S + k_t u_t^T, o_t = scale S_t^T q_t.

    Parameters
    ----------
    q, k : Tensor [B, T, H, K]
        Keys should have unit norm.
    v : Tensor [B, T, HV, V]
        HV a multiple of H: value head i has the queries and keys of head i // (HV / H).
    g : Tensor [B, T, HV]
        Log gates <= 0; with `use_gate_in_kernel` what they are made from, -exp(A_log) softplus(g + dt_bias).
    beta : Tensor [B, T, HV]
    scale : float, optional
        K^-0.5 without it.
    initial_state : Tensor [N, HV, K, V], optional
    output_final_state : bool
    use_qk_l2norm_in_kernel : bool
        Divide q and k by their norms, sqrt(sum x^2 + 1e-6).
    use_beta_sigmoid_in_kernel : bool
        Take sigmoid(beta), and with `allow_neg_eigval` 2 sigmoid(beta).
    state_v_first : bool
        States are [N, HV, V, K].
    cu_seqlens : Tensor [N + 1], optional
        Bounds of packed sequences in B = 1.
    cu_seqlens_cpu, chunk_indices : Tensor, optional
        Accepted and not needed.
    cp_context
        Not supported.
    **kwargs
        `use_gate_in_kernel`, `A_log` [HV] and `dt_bias` [HV].

    Returns
    -------
    Tensor [B, T, HV, V] of v's type, and the float32 state after the last token or None.
    """
    refuse("chunk_gated_delta_rule", cp_context=cp_context)
    gate = {name: kwargs.pop(name, None) for name in ("use_gate_in_kernel", "A_log", "dt_bias")}
    state_v_first = take_keywords("chunk_gated_delta_rule", kwargs, state_v_first)
    g = _log_gates(g, **gate)
    beta = _rates(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval)
    return delta_rule(
        q,
        k,
        v,
        beta,
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        g=g,
    )


def fused_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    use_gate_in_kernel: bool = False,
    A_log: Tensor | None = None,
    dt_bias: Tensor | None = None,
    use_beta_sigmoid_in_kernel: bool = False,
    allow_neg_eigval: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gated_delta_rule` with optional gates.

    Parameters
    ----------
    q, k, v, scale, initial_state, output_final_state, use_qk_l2norm_in_kernel, use_beta_sigmoid_in_kernel,
    allow_neg_eigval, state_v_first, cu_seqlens
        As in `chunk_gated_delta_rule`.
    g : Tensor [B, T, HV], optional
    gk : Tensor [B, T, HV, K], optional
        Log gates of keys and, `gv` [B, T, HV, V], of values; with them it goes token by token in plain PyTorch.
    beta : Tensor [B, T, HV] or [B, T, HV, V], optional
        1 without it; in plain PyTorch with a rate for each value.
    use_gate_in_kernel : bool
        Make the gates from g, as -exp(A_log) softplus(g + dt_bias).
    A_log, dt_bias : Tensor [HV], optional

    Returns
    -------
    As in `chunk_gated_delta_rule`.
    """
    state_v_first = take_keywords("fused_recurrent_gated_delta_rule", kwargs, state_v_first)
    if beta is None:
        beta = v.new_ones(v.shape[:3])
    return delta_rule(
        q,
        k,
        v,
        _rates(beta, use_beta_sigmoid_in_kernel, allow_neg_eigval),
        scale,
        initial_state,
        output_final_state,
        use_qk_l2norm_in_kernel,
        state_v_first=state_v_first,
        cu_seqlens=cu_seqlens,
        g=_log_gates(g, use_gate_in_kernel, A_log, dt_bias),
        gk=gk,
        gv=gv,
    )


chunk_gdn = chunk_gated_delta_rule
fused_recurrent_gdn = fused_recurrent_gated_delta_rule


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None,
    output_final_state: bool,
    normalize: bool,
    *,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run what all functions of both families come to: seqloom's op where it has the gates, else token by token."""
    check_packed(q, cu_seqlens, initial_state)
    if normalize:
        q, k = (t.float() * torch.rsqrt(t.float().square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
    q, k = for_heads(q, v.shape[2]), for_heads(k, v.shape[2])
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    beta = v.new_ones(v.shape[:3]) if beta is None else beta
    state = transposed(initial_state, state_v_first)
    if gk is None and gv is None and beta.dim() == 3:
        o, state = ops.delta_rule(q, k, v, beta, g, scale, state, cu_seqlens)
    else:
        o, state = packed_recurrence(q, k, v, scale, state, cu_seqlens, beta=beta, g=g, gk=gk, gv=gv)
    return o, transposed(state, state_v_first) if output_final_state else None


def naive_gdn_gate(
    g: Tensor, A_log: Tensor, dt_bias: Tensor | None = None, output_dtype: torch.dtype = torch.float32
) -> Tensor:
    """Log gates -exp(A_log) softplus(g + dt_bias) from g [..., HV]."""
    wide = g.float() if dt_bias is None else g.float() + dt_bias.float()
    return (-A_log.float().exp() * F.softplus(wide)).to(output_dtype)


fused_gdn_gate = naive_gdn_gate


def _log_gates(
    g: Tensor | None, use_gate_in_kernel: bool | None, A_log: Tensor | None, dt_bias: Tensor | None
) -> Tensor | None:
    if not use_gate_in_kernel:
        return g
    if g is None or A_log is None:
        raise ValueError("use_gate_in_kernel needs g and A_log")
    return naive_gdn_gate(g, A_log, dt_bias)


def _rates(beta: Tensor, sigmoid: bool, allow_neg_eigval: bool) -> Tensor:
    if allow_neg_eigval and not sigmoid:
        raise ValueError("`allow_neg_eigval=True` requires `use_beta_sigmoid_in_kernel=True`.")
    if not sigmoid:
        return beta
    return beta.float().sigmoid() * (2 if allow_neg_eigval else 1)


def naive_recurrent_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gated_delta_rule` token by token in plain PyTorch, in float32; as many heads of queries as of values."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o, state = recurrence(q, k, v, scale, initial_state, beta=beta, g=g)
    return o, state if output_final_state else None


def naive_chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int = 64,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gated_delta_rule` chunk by chunk in plain PyTorch, in float32: one triangular system for each chunk."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shape = (q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    state = q.new_zeros(shape, dtype=torch.float32) if initial_state is None else initial_state.float()
    outputs, parts = [], [t.float().split(chunk_size, dim=1) for t in (q, k, v, g, beta)]
    for q_c, k_c, v_c, g_c, beta_c in zip(*parts, strict=True):
        rows, keys, values, rates = (t.transpose(1, 2) for t in (q_c, k_c, v_c, beta_c))  # [B, H, L, ...]
        sums = g_c.transpose(1, 2).cumsum(-1).unsqueeze(-1)
        among = parallel_form(k_c, k_c, g_c, 1.0).tril(-1) * rates.unsqueeze(-1)
        known = rates.unsqueeze(-1) * (values - (keys * sums.exp()) @ state)
        added = torch.linalg.solve_triangular(among, known, upper=False, unitriangular=True)
        o = parallel_form(q_c, k_c, g_c, scale) @ added + scale * (rows * sums.exp()) @ state
        outputs.append(o.transpose(1, 2))
        last = sums[..., -1:, :]
        state = last.exp() * state + (keys * (last - sums).exp()).transpose(-1, -2) @ added
    return torch.cat(outputs, dim=1), state if output_final_state else None

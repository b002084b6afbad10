"""mamba_ssm.ops.selective_scan_interface: Mamba's scan, and the whole inner part of its block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.compat._common import ops
from seqloom.compat.causal_conv1d import causal_conv1d_fn


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's scan: h_t = exp(d_t A) h_{t-1} + d_t B_t u_t, y_t = (C_t . h_t + D u_t) silu(z_t).

    Parameters
    ----------
    u, delta : Tensor [B, E, T]
    A : Tensor [E, N]
        Real or complex; for complex A, B and C hold pairs (re, im) along 2 T, and 2 Re(C . h) is taken.
    B, C : Tensor [E, N], [B, N, T] or [B, G, N, T]
    D : Tensor [E], optional
    z : Tensor [B, E, T], optional
    delta_bias : Tensor [E], optional
    delta_softplus : bool
        d = softplus(delta + delta_bias) rather than delta + delta_bias.
    return_last_state : bool

    Returns
    -------
    Tensor [B, E, T] of u's type, and with `return_last_state` h_T [B, E, N], which has a gradient too.
    """
    y, state = ops.selective_scan(u, delta, A, B, C, D, z, delta_bias, bool(delta_softplus))
    # Contiguous, as decoders keep it and `selective_state_update` likes it.
    return (y, state.contiguous()) if return_last_state else y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`selective_scan_fn` in plain PyTorch, token by token."""
    x, step = u.float(), delta.float()
    if delta_bias is not None:
        step = step + delta_bias.float().unsqueeze(-1)
    if delta_softplus:
        step = F.softplus(step)
    b_t, c_t = (_map_of_tokens(m, u, A) for m in (B, C))
    state = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype, device=u.device)
    outputs = []
    for x_t, step_t, b, c in zip(x.unbind(-1), step.unbind(-1), b_t, c_t, strict=True):
        state = state * torch.exp(step_t.unsqueeze(-1) * A) + (step_t * x_t).unsqueeze(-1) * b
        read = (state * c).sum(-1)
        outputs.append(2 * read.real if A.is_complex() else read)
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + D.float().unsqueeze(-1) * x
    if z is not None:
        y = y * F.silu(z.float())
    y = y.to(u.dtype)
    return (y, state) if return_last_state else y


def _map_of_tokens(m: Tensor, u: Tensor, A: Tensor) -> list[Tensor]:
    """B or C of each token, to be broadcast to [B, E, N]."""
    if m.dim() == 2:
        return [m] * u.shape[-1]
    m = m.float()
    if A.is_complex():
        m = torch.view_as_complex(m.unflatten(-1, (-1, 2)).contiguous())
    m = m.unsqueeze(1) if m.dim() == 3 else m
    return m.repeat_interleave(u.shape[1] // m.shape[1], dim=1).unbind(-1)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's block between its input projection and its end: convolution, step sizes, scan, gate, output projection.

    Parameters
    ----------
    xz : Tensor [B, 2 E, T]
    conv1d_weight : Tensor [E, 1, W]
    conv1d_bias : Tensor [E] or None
    x_proj_weight : Tensor [R + 2 N, E]
        Without the N rows of B or C where these are given; twice N rows each for complex A.
    delta_proj_weight : Tensor [E, R]
    out_proj_weight : Tensor [D, E]
    out_proj_bias : Tensor [D] or None
    A, B, C, D, delta_bias, delta_softplus
        As in `selective_scan_fn`; B and C are computed from the tokens where they are None.
    B_proj_bias, C_proj_bias : Tensor [N], optional
    checkpoint_lvl : {0, 1}
        Accepted; what is kept for the gradient is the same for both.
    b_rms_weight, c_rms_weight : Tensor [N], optional
        RMS norms of B and C, and `dt_rms_weight` [E] of delta.
    b_c_dt_rms_eps : float

    Returns
    -------
    Tensor [B, T, D]
    """
    norms = (dt_rms_weight, b_rms_weight, c_rms_weight)
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"mamba_inner_fn: checkpoint_lvl is {checkpoint_lvl!r}, expected 0 or 1")
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    delta, B, C = _from_tokens(
        x, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, norms, b_c_dt_rms_eps
    )
    y = selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2).to(out_proj_weight.dtype), out_proj_weight, out_proj_bias)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` from its parts, as the original has it: by the kernels, without norms."""
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    delta, B, C = _from_tokens(x, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias)
    y = selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.transpose(1, 2).to(out_proj_weight.dtype), out_proj_weight, out_proj_bias)


def _from_tokens(
    x: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    norms: tuple[Tensor | None, ...] = (None, None, None),
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Delta [B, E, T] and, where they are not given, B and C [B, N, T] (complex A: [B, N, 2 T]) from x [B, E, T]."""
    states = A.shape[1] * (2 if A.is_complex() else 1)
    rank = delta_proj_weight.shape[1]
    rows = F.linear(x.transpose(1, 2).to(x_proj_weight.dtype), x_proj_weight)

    def normed(m: Tensor, weight: Tensor | None) -> Tensor:
        return m if weight is None else ops.rms_norm(m, weight, eps)

    def map_of(given: Tensor | None, m: Tensor, bias: Tensor | None, weight: Tensor | None) -> Tensor:
        if given is not None:
            return given
        m = normed(m if bias is None else m + bias.to(m.dtype), weight)
        return m.unflatten(-1, (-1, 2)).transpose(1, 2).flatten(2) if A.is_complex() else m.transpose(1, 2)

    delta = normed(F.linear(rows[..., :rank], delta_proj_weight), norms[0]).transpose(1, 2)
    B = map_of(B, rows[..., rank : rank + states], B_proj_bias, norms[1])
    return delta, B, map_of(C, rows[..., -states:], C_proj_bias, norms[2])

"""mamba_ssm.ops.triton.selective_state_update: one token of Mamba's or Mamba-2's scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.compat._common import ops


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """One token of the scan, h <- exp(dt A) h + dt B x, y = (C . h + D x) silu(z); no gradients.

    Parameters
    ----------
    state : Tensor [B, E, N] or [B, H, P, N]
        Changed in place.
    x, dt, z : Tensor [B, E] or [B, H, P]
    A : Tensor [E, N] or [H, P, N]
    B, C : Tensor [B, N] or [B, G, N]
    D, dt_bias : Tensor [E] or [H, P], optional
    dt_softplus : bool
    state_batch_indices : Tensor [B], optional
        The rows of `state` to use.

    Returns
    -------
    Tensor of x's shape and type.
    """
    return ops.selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, bool(dt_softplus), state_batch_indices)


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`selective_state_update` in plain PyTorch."""
    step = dt if dt_bias is None else dt + dt_bias
    step = (F.softplus(step) if dt_softplus else step).unsqueeze(-1)
    b, c = (_per_channel(m, state) for m in (B, C))
    state.copy_(state * torch.exp(step * A) + step * b * x.unsqueeze(-1))
    y = (state.to(C.dtype) * c).sum(-1)
    if D is not None:
        y = y + (x * D).to(y.dtype)
    if z is not None:
        y = y * F.silu(z)
    return y.to(x.dtype)


def _per_channel(m: Tensor, state: Tensor) -> Tensor:
    """B or C to be broadcast to the state."""
    if state.dim() == 3:
        return m.unsqueeze(1) if m.dim() == 2 else m.repeat_interleave(state.shape[1] // m.shape[1], dim=1)
    m = m.unsqueeze(1) if m.dim() == 2 else m
    return m.repeat_interleave(state.shape[1] // m.shape[1], dim=1).unsqueeze(2)

"""causal_conv1d.cpp_functions: what autograd functions of other packages call by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from seqloom.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_fn, causal_conv1d_update


def _activation(silu: bool) -> str | None:
    return "silu" if silu else None


def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """`causal_conv1d_fn`; writes the last inputs into `final_states_out` if given."""
    with torch.no_grad():
        y = causal_conv1d_fn(
            x,
            weight,
            bias,
            seq_idx,
            initial_states,
            final_states_out is not None,
            final_states_out,
            _activation(silu_activation),
        )
    return y if final_states_out is None else y[0]


def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of x (written into `dx` if given), weight, bias and initial states; None where there is none."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in (x, weight, bias, initial_states)]
    with torch.enable_grad():
        y = causal_conv1d_fn(
            *leaves[:3],
            seq_idx,
            leaves[3],
            return_final_states=dfinal_states is not None,
            activation=_activation(silu_activation),
        )
    outputs, gradients = ((y,), (dout,)) if dfinal_states is None else (y, (dout, dfinal_states))
    asked = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(outputs, asked, gradients, allow_unused=True))
    g = [None if t is None else next(found) for t in leaves]
    g[0] = g[0] if dx is None else dx.copy_(g[0])
    return g[0], g[1], g[2], g[3] if return_dinitial_states else None


def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """`causal_conv1d_update` of x [B, D, T]."""
    return causal_conv1d_update(
        x, conv_state, weight, bias, _activation(silu_activation), cache_seqlens, conv_state_indices
    )

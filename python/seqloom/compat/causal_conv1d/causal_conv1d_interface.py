"""causal_conv1d.causal_conv1d_interface: the depthwise causal convolution, whole and step by step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.compat._common import ops, packed, runs_of, unpacked, uses_silu


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution, y_t = act(bias + sum_j weight[:, j] x_{t-W+1+j}).

    Parameters
    ----------
    x : Tensor [B, D, T]
    weight : Tensor [D, W]
    bias : Tensor [D], optional
    seq_idx : Tensor [B, T], optional
        The sequence of each token: nothing flows from one into the next. Negative: padding, whose outputs are 0.
    initial_states : Tensor [B, D, W - 1], optional
        The inputs before x.
    return_final_states : bool
        Return the last W - 1 inputs too.
    final_states_out : Tensor [B, D, W - 1], optional
        Where to write them.
    activation : {None, "silu", "swish"}

    Returns
    -------
    Tensor [B, D, T] of x's type, and with `return_final_states` a Tensor [B, D, W - 1] of x's type.
    """
    silu = uses_silu(activation)
    if seq_idx is not None:
        if initial_states is not None or return_final_states:
            raise ValueError("causal_conv1d_fn: seq_idx goes with neither initial_states nor return_final_states")
        rows = x.transpose(1, 2)
        cu_seqlens, _ = runs_of(seq_idx)
        y, _ = ops.causal_conv1d(packed(rows).transpose(1, 2), weight, bias, None, silu, cu_seqlens)
        y = unpacked(y.transpose(1, 2), rows).transpose(1, 2)
        return y.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    y, last = ops.causal_conv1d(x, weight, bias, initial_states, silu)
    if not return_final_states:
        return y
    if final_states_out is None:
        return y, last.to(x.dtype)
    return y, final_states_out.copy_(last)


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """Convolve the next tokens; no gradients.

    Parameters
    ----------
    x : Tensor [B, D] or [B, D, T]
    conv_state : Tensor [B, D, L], L >= W - 1
        The last L inputs, changed in place.
    weight : Tensor [D, W]
    bias : Tensor [D], optional
    activation : {None, "silu", "swish"}
    cache_seqlens : Tensor [B], optional
        How many inputs each row has seen: `conv_state` is then a ring, the next input goes to this index modulo L.
    conv_state_indices : Tensor [B], optional
        The rows of `conv_state` to use; negative: none, and the output is 0.

    Returns
    -------
    Tensor of x's shape and type.
    """
    rows = x.unsqueeze(-1) if x.dim() == 2 else x
    y = ops.causal_conv1d_update(
        rows, conv_state, weight, bias, uses_silu(activation), cache_seqlens, conv_state_indices
    )
    return y.squeeze(-1) if x.dim() == 2 else y


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`causal_conv1d_fn` in plain PyTorch, in the type of `weight`."""
    silu = uses_silu(activation)
    channels, width = weight.shape
    before = x.new_zeros(x.shape[0], channels, width - 1) if initial_states is None else initial_states
    history = torch.cat([before.to(weight.dtype), x.to(weight.dtype)], dim=-1)
    y = F.conv1d(history, weight.unsqueeze(1), bias, groups=channels)
    y = (F.silu(y) if silu else y).to(x.dtype)
    if not return_final_states:
        return y
    last = history[..., history.shape[-1] - (width - 1) :].to(x.dtype)
    return y, last if final_states_out is None else final_states_out.copy_(last)


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d_update` in plain PyTorch, in the type of `weight`."""
    silu = uses_silu(activation)
    rows = x.unsqueeze(-1) if x.dim() == 2 else x
    (_, channels, tokens), (_, width), length = rows.shape, weight.shape, conv_state.shape[-1]
    if cache_seqlens is None:
        history = torch.cat([conv_state, rows.to(conv_state.dtype)], dim=-1)
        conv_state.copy_(history[..., history.shape[-1] - length :])
    else:

        def ring(first: int, end: int) -> Tensor:
            index = cache_seqlens.long().unsqueeze(1) + torch.arange(first, end, device=x.device)
            return index.remainder(length).unsqueeze(1).expand(-1, channels, -1)

        history = torch.cat([conv_state.gather(2, ring(1 - width, 0)), rows.to(conv_state.dtype)], dim=-1)
        for t in range(tokens):  # in order: a later token may come round to an earlier one's place
            conv_state.scatter_(2, ring(t, t + 1), rows[..., t : t + 1].to(conv_state.dtype))
    history = history[..., history.shape[-1] - tokens - (width - 1) :].to(weight.dtype)
    y = F.conv1d(history, weight.unsqueeze(1), bias, groups=channels)
    y = (F.silu(y) if silu else y).to(x.dtype)
    return y.squeeze(-1) if x.dim() == 2 else y

"""mamba_ssm.ops.triton.layernorm_gated: norms with an output gate, by groups of channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqloom.compat._common import ops


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """norm(x) silu(z), or norm(x silu(z)), by groups of channels.

    Parameters
    ----------
    x : Tensor [..., D]
    weight : Tensor [D]
    bias : Tensor [D] or None
    z : Tensor of x's shape, optional
    eps : float
    group_size : int, optional
        Channels that are normed together; all without it.
    norm_before_gate : bool
    is_rms_norm : bool
        An RMS norm, not a layer norm.

    Returns
    -------
    Tensor of x's shape and type.
    """
    if is_rms_norm and bias is None:
        return _rms_norm(x, weight, z, eps, group_size or x.shape[-1], norm_before_gate)
    return _plain(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """`layernorm_fn` as an RMS norm."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, True)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    upcast: bool = True,
) -> Tensor:
    """`rmsnorm_fn` in plain PyTorch; in float32 with `upcast`, else in x's type."""
    return _plain(x, weight, bias, z, eps, group_size, norm_before_gate, True, upcast)


def _rms_norm(x: Tensor, weight: Tensor, z: Tensor | None, eps: float, size: int, norm_before_gate: bool) -> Tensor:
    def grouped(t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, size))

    if z is None:
        return ops.rms_norm(grouped(x), grouped(weight), eps).flatten(-2)
    return ops.gated_rms_norm(grouped(x), grouped(z), grouped(weight), eps, norm_before_gate).flatten(-2)


def _plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
    is_rms_norm: bool,
    upcast: bool = True,
) -> Tensor:
    wide = x.float() if upcast else x
    gate = None if z is None else F.silu(z.float() if upcast else z)
    if gate is not None and not norm_before_gate:
        wide = wide * gate
    groups = wide.unflatten(-1, (-1, group_size or x.shape[-1]))
    if not is_rms_norm:
        groups = groups - groups.mean(-1, keepdim=True)
    groups = groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + eps)
    y = groups.flatten(-2) * weight.float()
    if bias is not None:
        y = y + bias.float()
    if gate is not None and norm_before_gate:
        y = y * gate
    return y.to(x.dtype)


class LayerNorm(nn.Module):
    """`layernorm_fn` with its parameters.

    Parameters
    ----------
    hidden_size : int
    eps : float
    group_size : int, optional
    norm_before_gate : bool
    device, dtype
        Of the parameters.
    """

    is_rms_norm = False

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        group_size: int | None = None,
        norm_before_gate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps, self.group_size, self.norm_before_gate = eps, group_size, norm_before_gate
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None if self.is_rms_norm else nn.Parameter(torch.empty_like(self.weight)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """norm(x) silu(z), or norm(x silu(z))."""
        return layernorm_fn(
            x, self.weight, self.bias, z, self.eps, self.group_size, self.norm_before_gate, self.is_rms_norm
        )


class RMSNorm(LayerNorm):
    """`rmsnorm_fn` with its weight; the parameters of `LayerNorm`."""

    is_rms_norm = True

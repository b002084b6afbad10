"""mamba_ssm.ops.triton.layer_norm: norms fused with the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqloom.compat._common import ops


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor | None, ...]:
    """norm(dropout(x rowscale) + dropout(x1) + residual).

    Parameters
    ----------
    x : Tensor [..., D]
    weight, bias : Tensor [D]
        Bias may be None.
    residual : Tensor of x's shape, optional
    x1 : Tensor of x's shape, optional
        A second branch, not together with `rowscale`.
    weight1, bias1 : Tensor [D], optional
        A second norm of the same sum.
    eps : float
    dropout_p : float
        Applied if > 0, as in the original: pass 0 outside training.
    rowscale : Tensor [...], optional
        A factor for each row of x.
    prenorm : bool
        Return the sum too, the residual stream: in the residual's type, or float32 with `residual_in_fp32`.
    residual_in_fp32 : bool
    is_rms_norm : bool
    return_dropout_mask : bool
        Return the masks of x and x1 too, None without dropout.

    Returns
    -------
    y, then y1 with `weight1`, the sum with `prenorm`, two masks with `return_dropout_mask`; a Tensor if it is y alone.
    """
    if x1 is not None and rowscale is not None:
        raise ValueError("layer_norm_fn: rowscale does not go with x1")
    total, mask = _dropped(x if rowscale is None else x * rowscale.unsqueeze(-1), dropout_p)
    mask1 = None
    if x1 is not None:
        branch, mask1 = _dropped(x1, dropout_p)
        total = total + branch
    wide = total if total.dtype == torch.float64 else total.float()
    if residual is not None:
        wide = wide + residual
    stream_dtype = residual.dtype if residual is not None else torch.float32 if residual_in_fp32 else x.dtype
    y = [
        _norm(wide, w, b, eps, is_rms_norm).to(x.dtype) for w, b in ((weight, bias), (weight1, bias1)) if w is not None
    ]
    results = y + ([wide.to(stream_dtype)] if prenorm else []) + ([mask, mask1] if return_dropout_mask else [])
    return tuple(results) if len(results) > 1 else results[0]


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Tensor | tuple[Tensor | None, ...]:
    """`layer_norm_fn` as an RMS norm."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        x1,
        weight1,
        bias1,
        eps,
        dropout_p,
        rowscale,
        prenorm,
        residual_in_fp32,
        True,
        return_dropout_mask,
    )


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm_fn` followed by a linear map."""
    y, stream = layer_norm_fn(
        x,
        norm_weight,
        norm_bias,
        residual,
        eps=eps,
        prenorm=True,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )
    out = F.linear(y.to(linear_weight.dtype), linear_weight, linear_bias)
    return (out, stream) if prenorm else out


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """`layer_norm_fn` in plain PyTorch, with the masks of dropout given; in float32 with `upcast`, else in x's type."""
    norms = ((weight, bias), (weight1, bias1))
    branches = ((x, dropout_mask), (x1, dropout_mask1))
    return _reference(branches, norms, residual, eps, dropout_p, rowscale, prenorm, upcast, is_rms_norm=False)


def rms_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    dropout_mask: Tensor | None = None,
    dropout_mask1: Tensor | None = None,
    upcast: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """`layer_norm_ref` as an RMS norm."""
    norms = ((weight, bias), (weight1, bias1))
    branches = ((x, dropout_mask), (x1, dropout_mask1))
    return _reference(branches, norms, residual, eps, dropout_p, rowscale, prenorm, upcast, is_rms_norm=True)


def _reference(
    branches: tuple[tuple[Tensor | None, Tensor | None], ...],
    norms: tuple[tuple[Tensor | None, Tensor | None], ...],
    residual: Tensor | None,
    eps: float,
    dropout_p: float,
    rowscale: Tensor | None,
    prenorm: bool,
    upcast: bool,
    is_rms_norm: bool,
) -> Tensor | tuple[Tensor, ...]:
    def wide(t: Tensor | None) -> Tensor | None:
        return t.float() if upcast and t is not None else t

    dtype = branches[0][0].dtype
    scales = (1 if rowscale is None else wide(rowscale).unsqueeze(-1), 1)
    total = sum(
        _dropped(wide(x) * scale, dropout_p, mask)[0]
        for (x, mask), scale in zip(branches, scales, strict=True)
        if x is not None
    )
    if residual is not None:
        total = (total + wide(residual)).to(total.dtype)
    y = []
    for weight, bias in ((wide(w), wide(b)) for w, b in norms if w is not None):
        if is_rms_norm:
            normed = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight
            normed = normed if bias is None else normed + bias
        else:
            normed = F.layer_norm(total.to(weight.dtype), total.shape[-1:], weight, bias, eps)
        y.append(normed.to(dtype))
    results = y + ([total] if prenorm else [])
    return tuple(results) if len(results) > 1 else results[0]


def _dropped(x: Tensor, p: float, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    if p <= 0:
        return x, None
    keep = torch.rand_like(x, dtype=torch.float32) > p if keep is None else keep
    return x.masked_fill(~keep, 0) / (1 - p), keep


def _norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, is_rms_norm: bool) -> Tensor:
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if not is_rms_norm:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = ops.rms_norm(x, weight, eps)
    return y if bias is None else y + bias


class RMSNorm(nn.Module):
    """`rms_norm_fn` with its weight.

    Parameters
    ----------
    hidden_size : int
    eps : float
    dropout_p : float
    device, dtype
        Of the weight.
    """

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.drop = nn.Dropout(dropout_p) if dropout_p > 0 else None
        self.weight = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        nn.init.ones_(self.weight)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False, residual_in_fp32: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Norm x + residual; with `prenorm` return the sum too."""
        p = self.drop.p if self.drop is not None and self.training else 0.0
        return rms_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            eps=self.eps,
            dropout_p=p,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )

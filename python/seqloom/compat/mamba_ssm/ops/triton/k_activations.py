"""mamba_ssm.ops.triton.k_activations: SwiGLU of two halves."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(xy: Tensor) -> Tensor:
    """silu(x) y of the halves x, y of the last dimension."""
    x, y = xy.chunk(2, dim=-1)
    return F.silu(x) * y

"""mamba_ssm.ops.triton.softplus."""

from torch.nn.functional import softplus

__all__ = ["softplus"]

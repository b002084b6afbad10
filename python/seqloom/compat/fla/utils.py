"""fla.utils: what tests of fla's ops take from it."""

from __future__ import annotations

import warnings

from torch import Tensor

device = device_platform = "cpu"
IS_INTEL_ALCHEMIST = IS_NPU = IS_NVIDIA_BLACKWELL = IS_NVIDIA_HOPPER = IS_NVIDIA_SM100 = IS_NVIDIA_SM120 = False


def assert_close(
    prefix: str, ref: Tensor, tri: Tensor, ratio: float, warning: bool = False, err_atol: float = 1e-6
) -> None:
    """Check that the root mean square of ref - tri is below `ratio` of that of ref, or all differences are tiny."""
    difference = (ref.detach() - tri.detach()).double().flatten()
    largest = difference.abs().max().item()
    error = (difference.square().mean().sqrt() / (ref.detach().double().square().mean().sqrt() + 1e-8)).item()
    message = f"{prefix}: differs by {largest:.6f}, relative {error:.6f}"
    if largest <= err_atol:
        return
    if warning and error >= ratio:
        warnings.warn(message, stacklevel=2)
    else:
        assert error < ratio, message

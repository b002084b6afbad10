"""mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step."""

from __future__ import annotations

from typing import NoReturn


def apply_rotary_qk_inference_fwd(*args, **kwargs) -> NoReturn:
    """Raise NotImplementedError."""
    raise NotImplementedError("apply_rotary_qk_inference_fwd: seqloom has no Mamba-3")

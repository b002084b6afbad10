"""mamba_ssm.ops.triton.mamba3: what the package imports of Mamba-3, which seqloom does not have."""

from __future__ import annotations

from typing import NoReturn

__path__: list[str] = []  # its submodules are this module, see seqloom.compat


def mamba3_siso_combined(*args, **kwargs) -> NoReturn:
    """Raises NotImplementedError."""
    raise NotImplementedError("mamba3_siso_combined: seqloom has no Mamba-3")


def apply_rotary_qk_inference_fwd(*args, **kwargs) -> NoReturn:
    """Raises NotImplementedError."""
    raise NotImplementedError("apply_rotary_qk_inference_fwd: seqloom has no Mamba-3")

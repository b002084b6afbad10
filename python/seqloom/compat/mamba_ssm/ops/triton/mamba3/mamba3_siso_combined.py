"""mamba_ssm.ops.triton.mamba3.mamba3_siso_combined."""

from __future__ import annotations

from typing import NoReturn


def mamba3_siso_combined(*args, **kwargs) -> NoReturn:
    """Raise NotImplementedError."""
    raise NotImplementedError("mamba3_siso_combined: seqloom has no Mamba-3")

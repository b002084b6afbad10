"""What the drop-ins share: packed sequences from indices, activations, arguments that are only accepted."""

from __future__ import annotations

import torch
from torch import Tensor

ops = torch.ops.seqloom


def uses_silu(activation: str | None) -> bool:
    """Whether `activation` is SiLU by one of its names; None is no activation."""
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation must be None, silu or swish, not {activation!r}")
    return activation is not None


@torch.compiler.disable
def runs_of(seq_idx: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of rows that lie one after the other.

    Parameters
    ----------
    seq_idx : Tensor [B, T]
        The sequence of each token; a new one begins where the index changes, and with each row.

    Returns
    -------
    cu_seqlens : Tensor [S + 1]
        Bounds of the sequences in the B T tokens.
    first : Tensor [B]
        The first sequence of each row.
    """
    begins = torch.ones_like(seq_idx, dtype=torch.bool)
    begins[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    cu_seqlens = torch.cat([starts, starts.new_tensor([seq_idx.numel()])])
    counts = begins.sum(1)
    return cu_seqlens, counts.cumsum(0) - counts


def packed(x: Tensor) -> Tensor:
    """[B, T, ...] as [1, B T, ...]."""
    return x.flatten(0, 1).unsqueeze(0)


def unpacked(x: Tensor, like: Tensor) -> Tensor:
    """[1, B T, ...] as [B, T, ...] of `like`."""
    return x.squeeze(0).unflatten(0, like.shape[:2])


def refuse(function: str, **arguments) -> None:
    """Raise NotImplementedError for each argument that is given (neither None nor False)."""
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{function}: seqloom has no {name}={value!r}")

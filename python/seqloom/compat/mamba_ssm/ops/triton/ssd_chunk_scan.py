"""mamba_ssm.ops.triton.ssd_chunk_scan: Mamba-2's outputs from the state before each chunk, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.compat.mamba_ssm.ops.triton.ssd_chunk_state import chunked, per_head


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """Compute the outputs of all chunks.

    Parameters
    ----------
    B, C : Tensor [B, T, G, N]
    x : Tensor [B, T, H, P]
    dt, dA_cumsum : Tensor [B, H, chunks, L]
    prev_states : Tensor [B, chunks, H, P, N]
    D : Tensor [H] or [H, P], optional
    z : Tensor [B, T, H, P], optional

    Returns
    -------
    Tensor [B, T, H, P] of x's type.
    """
    wide = chunk_scan_ref(
        B.float(), C.float(), x.float(), dt.float(), dA_cumsum.float(), prev_states, D, None if z is None else z.float()
    )
    return wide.to(x.dtype)


def chunk_scan_ref(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """`chunk_scan` in x's type."""
    tokens, heads, length = x.shape[1], x.shape[2], dt.shape[-1]
    b, c = (chunked(per_head(m, heads), length, 1) for m in (B, C))  # [B, chunks, L, H, N]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    exponents = (dA_cumsum.unsqueeze(-1) - dA_cumsum.unsqueeze(-2)).masked_fill(later, -torch.inf)
    scores = torch.einsum("bclhn,bcshn->bhcls", c, b) * torch.exp(exponents) * dt.unsqueeze(-2)
    y = torch.einsum("bhcls,bcshp->bclhp", scores.to(x.dtype), chunked(x, length, 1))
    past = torch.einsum("bclhn,bchpn->bclhp", c, prev_states.to(c.dtype))
    y = y + past * torch.exp(dA_cumsum).permute(0, 2, 3, 1).unsqueeze(-1)
    y = y.flatten(1, 2)[:, :tokens]
    if D is not None:
        y = y + x * (D.unsqueeze(-1) if D.dim() == 1 else D)
    return y if z is None else y * F.silu(z)

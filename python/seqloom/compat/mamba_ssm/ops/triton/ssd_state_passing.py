"""mamba_ssm.ops.triton.ssd_state_passing: Mamba-2's state from chunk to chunk, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def _state_passing_fwd(
    states: Tensor,
    dA_chunk_cumsum: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """`state_passing`; with `seq_idx` [B, T] nothing passes between chunks that end with other sequences."""
    decay = torch.exp(dA_chunk_cumsum.float()).permute(0, 2, 1).unsqueeze(-1)  # [B, C, H, 1]
    if seq_idx is not None:
        ends = torch.arange(1, states.shape[1] + 1, device=seq_idx.device) * chunk_size - 1
        last = seq_idx[:, ends.clamp(max=seq_idx.shape[1] - 1)]
        same = torch.cat([last[:, :1] == 0, last[:, 1:] == last[:, :-1]], dim=1)
        decay = decay * same[..., None, None]
    state = torch.zeros_like(states[:, 0], dtype=torch.float32) if initial_states is None else initial_states.float()
    before = []
    for d, added in zip(decay.unbind(1), states.float().unbind(1), strict=True):
        before.append(state)
        state = d * state + added
    return torch.stack(before, dim=1).to(out_dtype or states.dtype), state


def state_passing(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Pass the state from chunk to chunk.

    Parameters
    ----------
    states : Tensor [B, C, H, S]
        What each chunk adds.
    dA_chunk_cumsum : Tensor [B, H, C]
        The sum of dt A over each chunk.
    initial_states : Tensor [B, H, S], optional

    Returns
    -------
    Tensor [B, C, H, S] of the type of `states`, and the state after the last chunk, float32 [B, H, S].
    """
    return _state_passing_fwd(states, dA_chunk_cumsum, initial_states)


state_passing_ref = state_passing

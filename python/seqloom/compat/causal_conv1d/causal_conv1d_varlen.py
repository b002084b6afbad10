"""causal_conv1d.causal_conv1d_varlen: the last inputs of packed sequences."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Gather the last `state_len` inputs of each packed sequence, 0 before its beginning; no gradients.

    Parameters
    ----------
    x : Tensor [tokens, D]
    cu_seqlens : Tensor [S + 1]
    state_len : int

    Returns
    -------
    Tensor [S, D, state_len]
    """
    begin, end = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    index = end.unsqueeze(1) + torch.arange(-state_len, 0, device=x.device)
    inside = index >= begin.unsqueeze(1)
    rows = x.detach()[index.clamp(min=0)].masked_fill(~inside.unsqueeze(-1), 0)
    return rows.transpose(1, 2)


def causal_conv1d_varlen_states_ref(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """Do the same one sequence at a time."""
    states = x.new_zeros(len(cu_seqlens) - 1, x.shape[1], state_len)
    for state, (begin, end) in zip(states, pairwise(cu_seqlens.tolist()), strict=True):
        count = min(end - begin, state_len)
        if count:
            state[:, state_len - count :] = x[end - count : end].T
    return states

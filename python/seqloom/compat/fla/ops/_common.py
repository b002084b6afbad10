"""What the families share: the checks of arguments, the shapes of states, packed and reversed sequences."""

from __future__ import annotations

import warnings
from itertools import pairwise

import torch
from torch import Tensor

from seqloom.compat._common import ops

# Keywords that change nothing here: how the original cuts its work up.
IGNORED = ("chunk_size", "cu_seqlens_cpu", "chunk_indices")


def take_keywords(function: str, keywords: dict, state_v_first: bool = False) -> bool:
    """Check what a function was given beyond its named arguments; returns `state_v_first`."""
    if "head_first" in keywords:
        raise DeprecationWarning("head_first has been removed. Inputs must be in `[B, T, H, ...]` format.")
    for name, value in keywords.items():
        if name == "transpose_state_layout":
            if state_v_first:
                raise ValueError("Cannot pass both `state_v_first` and the deprecated `transpose_state_layout`.")
            warnings.warn(f"{function}: `{name}` is now `state_v_first`", DeprecationWarning, stacklevel=3)
            state_v_first = value
        elif name not in IGNORED and value is not None and value is not False:
            raise NotImplementedError(f"{function}: seqloom has no {name}")
    return state_v_first


def check_packed(q: Tensor, cu_seqlens: Tensor | None, initial_state: Tensor | None) -> None:
    """Packed sequences lie in one row, with an initial state each."""
    if cu_seqlens is None:
        return
    if q.shape[0] != 1:
        raise ValueError(f"The batch size is expected to be 1 rather than {q.shape[0]} when using `cu_seqlens`")
    if initial_state is not None and initial_state.shape[0] != len(cu_seqlens) - 1:
        raise ValueError(
            f"The number of initial states is expected to be that of the sequences, {len(cu_seqlens) - 1}, rather than "
            f"{initial_state.shape[0]}"
        )


def for_heads(t: Tensor, heads: int) -> Tensor:
    """Repeat queries or keys [B, T, H, K] for a multiple of H value heads."""
    if t.shape[2] == heads:
        return t
    if heads % t.shape[2]:
        raise ValueError(f"{heads} heads of values are no multiple of {t.shape[2]} heads of queries and keys")
    return t.repeat_interleave(heads // t.shape[2], dim=2)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    scale: float | None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t by seqloom's op; decay [B, T, H, K] or [B, T, H].

    `reverse` runs from the last token to the first.
    """
    check_packed(q, cu_seqlens, initial_state)
    q, k = for_heads(q, v.shape[2]), for_heads(k, v.shape[2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    state = transposed(initial_state, state_v_first)
    if reverse:
        q, k, v, decay = (t if t is None else t.flip(1) for t in (q, k, v, decay))
        state, cu_seqlens = reversed_sequences(state, cu_seqlens)
    o, state = ops.gated_linear_attention(q, k, v, decay, scale, state, cu_seqlens)
    if reverse:
        o, state = o.flip(1), reversed_sequences(state, cu_seqlens)[0]
    return o, transposed(state, state_v_first) if output_final_state else None


def reversed_sequences(state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """States and bounds of packed sequences when all tokens are reversed."""
    if cu_seqlens is None:
        return state, None
    return state if state is None else state.flip(0), cu_seqlens[-1] - cu_seqlens.flip(0)


def transposed(state: Tensor | None, state_v_first: bool) -> Tensor | None:
    """Turn a state [N, H, K, V] to and from [N, H, V, K] if asked for."""
    return state.transpose(-1, -2) if state is not None and state_v_first else state


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    state: Tensor | None,
    *,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    gv: Tensor | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply the rule of all families in plain PyTorch, token by token, in float32.

    S <- diag(e^{gk_t + g_t}) S diag(e^{gv_t}); u_t = v_t, or with beta the delta rule's beta_t (v_t - S^T k_t);
    S_t = S + k_t u_t^T; o_t = scale S_t^T q_t.

    Parameters
    ----------
    q, k, gk : Tensor [B, T, H, K]
    v, gv : Tensor [B, T, H, V]
    scale : float
    state : Tensor [B, H, K, V] or None
    g : Tensor [B, T, H]
    beta : Tensor [B, T, H] or [B, T, H, V]

    Returns
    -------
    Tensor [B, T, H, V] and Tensor [B, H, K, V], both float32.
    """
    q, k, v = (t.float() for t in (q, k, v))
    state = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1]) if state is None else state.float()
    if beta is not None:
        beta = (beta.unsqueeze(-1) if beta.dim() == 3 else beta).float()
    factors = [
        t.float().exp() for t in (_to_state(g, (-1, -1)), _to_state(gk, (-1,)), _to_state(gv, (-2,))) if t is not None
    ]
    outputs = []
    for t in range(q.shape[1]):
        for factor in factors:
            state = state * factor[:, t]
        added = v[:, t]
        if beta is not None:
            added = beta[:, t] * (added - (state * k[:, t].unsqueeze(-1)).sum(-2))
        state = state + k[:, t].unsqueeze(-1) * added.unsqueeze(-2)
        outputs.append((state * q[:, t].unsqueeze(-1)).sum(-2) * scale)
    return torch.stack(outputs, dim=1), state


def _to_state(gate: Tensor | None, dims: tuple[int, ...]) -> Tensor | None:
    """Unsqueeze a gate, to be broadcast to [B, T, H, K, V]."""
    for dim in dims if gate is not None else ():
        gate = gate.unsqueeze(dim)
    return gate


def packed_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool = False,
    **gates: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`recurrence` for each of packed sequences, o of v's type; `reverse` runs from the last token to the first."""
    if reverse:
        q, k, v, *rest = (t if t is None else t.flip(1) for t in (q, k, v, *gates.values()))
        gates = dict(zip(gates, rest, strict=True))
        state, cu_seqlens = reversed_sequences(state, cu_seqlens)
    if cu_seqlens is None:
        o, last = recurrence(q, k, v, scale, state, **gates)
    else:
        os, states = [], []
        bounds = cu_seqlens.tolist()
        for i, part in enumerate(slice(*pair) for pair in pairwise(bounds)):
            mine = {name: t if t is None else t[:, part] for name, t in gates.items()}
            start = None if state is None else state[i : i + 1]
            o, last = recurrence(q[:, part], k[:, part], v[:, part], scale, start, **mine)
            os.append(o)
            states.append(last)
        o, last = torch.cat(os, dim=1), torch.cat(states)
    if reverse:
        o, last = o.flip(1), reversed_sequences(last, cu_seqlens)[0]
    return o.to(v.dtype), last


def parallel_form(q: Tensor, k: Tensor, decay: Tensor | None, scale: float) -> Tensor:
    """Make the matrix [B, H, T, T] with o = matrix @ v, for decay [B, T, H] or none, in float32."""
    q, k = (t.float().transpose(1, 2) for t in (q, k))
    scores = scale * q @ k.transpose(-1, -2)
    later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    if decay is None:
        return scores.masked_fill(later, 0)
    sums = decay.float().transpose(1, 2).cumsum(-1)
    return scores * torch.exp((sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(later, -torch.inf))

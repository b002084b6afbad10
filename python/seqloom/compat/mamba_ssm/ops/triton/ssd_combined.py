"""mamba_ssm.ops.triton.ssd_combined: Mamba-2's scan, and the whole inner part of its block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqloom.compat._common import ops, packed, runs_of, unpacked
from seqloom.compat.causal_conv1d import causal_conv1d_fn
from seqloom.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from seqloom.compat.mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref
from seqloom.compat.mamba_ssm.ops.triton.k_activations import swiglu
from seqloom.compat.mamba_ssm.ops.triton.layernorm_gated import rms_norm_ref, rmsnorm_fn
from seqloom.compat.mamba_ssm.ops.triton.ssd_chunk_scan import chunk_scan_ref
from seqloom.compat.mamba_ssm.ops.triton.ssd_chunk_state import _chunk_cumsum_fwd, chunk_state_ref
from seqloom.compat.mamba_ssm.ops.triton.ssd_state_passing import state_passing_ref

Limits = tuple[float, float]
UNLIMITED: Limits = (0.0, float("inf"))


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = UNLIMITED,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Mamba-2's scan: h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T, y_t = (h_t C_t + D x_t) silu(z_t).

    Parameters
    ----------
    x : Tensor [B, T, H, P]
    dt : Tensor [B, T, H]
    A : Tensor [H]
    B, C : Tensor [B, T, G, N]
    chunk_size : int
        Accepted; the result does not depend on it, and neither does the speed.
    D : Tensor [H] or [H, P], optional
    z : Tensor [B, T, H, P], optional
    dt_bias : Tensor [H], optional
    initial_states : Tensor [B, H, P, N], optional
    seq_idx : Tensor [B, T], optional
        The sequence of each token: the state begins anew with each; `initial_states` is that of sequence 0.
    cu_seqlens : Tensor [S + 1], optional
        Bounds of packed sequences in B = 1, for `return_varlen_states`; tokens behind the last are padding.
    dt_softplus : bool
    dt_limit : (low, high)
        Bounds of the step sizes.
    return_final_states : bool
        Return the state after each row, float32 [B, H, P, N].
    return_varlen_states : bool
        Return the state after each of the packed sequences, float32 [S, H, P, N].
    state_dtype : torch.dtype, optional
        Accepted; states are float32 throughout.

    Returns
    -------
    Tensor [B, T, H, P] of x's type, alone or followed by the states that were asked for.
    """
    if return_varlen_states and cu_seqlens is None:
        raise ValueError("mamba_chunk_scan_combined: return_varlen_states needs cu_seqlens")

    def scan(rows: tuple[Tensor | None, ...], states: Tensor | None, bounds: Tensor | None) -> tuple[Tensor, Tensor]:
        x, dt, B, C, z = rows
        return ops.ssd(x, dt, A, B, C, D, z, dt_bias, bool(dt_softplus), list(dt_limit), states, bounds)

    rows = (x, dt, B, C, z)
    if return_varlen_states:
        bounds = torch.cat([cu_seqlens, cu_seqlens.new_tensor([x.shape[1]])])  # behind the last there may be padding
        first = None if initial_states is None else _first_states(initial_states, bounds, bounds[:1].long())
        y, states = scan(rows, first, bounds)
        final = states[-1:] if bounds[-2] < bounds[-1] else states[-2:-1]
        return (y, final, states[:-1]) if return_final_states else (y, states[:-1])
    if seq_idx is None:
        y, states = scan(rows, initial_states, None)
        return (y, states) if return_final_states else y
    bounds, first = runs_of(seq_idx)
    if initial_states is not None:
        begins_anew = (seq_idx[:, 0] != 0).view(-1, 1, 1, 1)
        initial_states = _first_states(initial_states.masked_fill(begins_anew, 0), bounds, first)
    y, states = scan(tuple(t if t is None else packed(t) for t in rows), initial_states, bounds)
    y = unpacked(y, x)
    last = torch.cat([first[1:], first.new_tensor([len(bounds) - 1])]) - 1
    return (y, states[last]) if return_final_states else y


def _first_states(initial_states: Tensor, bounds: Tensor, first: Tensor) -> Tensor:
    """Make initial states of packed sequences: those of the rows for the first of each row, 0 for the others."""
    states = initial_states.new_zeros(len(bounds) - 1, *initial_states.shape[1:])
    return states.index_copy(0, first, initial_states)


def mamba_chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`mamba_chunk_scan_combined` without states and limits."""
    return mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus=dt_softplus)


def ssd_chunk_scan_combined_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """`mamba_chunk_scan` in plain PyTorch, from the three steps of the chunked form."""
    unclamped = (float("-inf"), float("inf"))
    sums, step = _chunk_cumsum_fwd(dt, A, chunk_size, dt_bias, dt_softplus, unclamped)
    step = step.masked_fill(_beyond(x.shape[1], step), 0)
    sums = (step * A.float()[:, None, None]).cumsum(-1)
    added = chunk_state_ref(B, x, step, sums)
    before, _ = state_passing_ref(added.flatten(-2).float(), sums[..., -1])
    return chunk_scan_ref(B, C, x, step, sums, before.view(added.shape), D, z)


def _beyond(tokens: int, step: Tensor) -> Tensor:
    """Mark the padding of step sizes [B, H, C, L]: softplus makes something of it."""
    return torch.arange(step.shape[2] * step.shape[3], device=step.device).view(step.shape[2:]) >= tokens


def ssd_selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = UNLIMITED,
) -> Tensor:
    """Mamba-2's scan as one of Mamba, with a state for each channel.

    Parameters
    ----------
    x, B, C, D, z
        As in `mamba_chunk_scan_combined`.
    dt : Tensor [B, T, H] or [B, T, H, P]
    A : Tensor [H] or [H P, N]
    dt_bias : Tensor [H] or [H, P], optional
    dt_softplus : bool
    dt_limit : (low, high)

    Returns
    -------
    Tensor [B, T, H, P]
    """
    return _scan_of_channels(selective_scan_fn, x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit)


def _scan_of_channels(
    scan,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    dt_limit: Limits,
) -> Tensor:
    heads, width = x.shape[2:]

    def channels(t: Tensor | None, ndim: int) -> Tensor | None:
        """[..., H] or [..., H, P] as [..., H P]; `ndim` is that of the first."""
        if t is None:
            return None
        return (t.unsqueeze(-1).expand(*t.shape, width) if t.dim() == ndim else t).flatten(-2)

    def channel_major(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.transpose(1, 2)

    step, bias = channel_major(channels(dt, 3)), channels(dt_bias, 1)
    if A.dim() == 1:
        A = A.view(heads, 1, 1).expand(heads, width, B.shape[-1]).flatten(0, 1)
    if tuple(dt_limit) != UNLIMITED:
        step = step.float() if bias is None else step.float() + bias.float().unsqueeze(-1)
        step = (F.softplus(step) if dt_softplus else step).clamp(*dt_limit).to(x.dtype)
        bias, dt_softplus = None, False
    u, gate = channel_major(x.flatten(2)), None if z is None else channel_major(z.flatten(2))
    maps = (m.permute(0, 2, 3, 1) for m in (B, C))
    y = scan(u, step, A.float(), *maps, channels(D, 1), gate, bias, dt_softplus)
    return y.transpose(1, 2).unflatten(-1, (heads, width))


def mamba_conv1d_scan_ref(
    xBC: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limits = UNLIMITED,
    activation: str = "silu",
    headdim: int | None = None,
    ngroups: int = 1,
) -> Tensor:
    """Convolution and scan in plain PyTorch.

    Parameters
    ----------
    xBC : Tensor [B, T, H P + 2 G N]
    conv1d_weight : Tensor [H P + 2 G N, W]
    conv1d_bias : Tensor [H P + 2 G N] or None
    dt, A, chunk_size, D, dt_bias, dt_softplus, dt_limit
        As in `ssd_selective_scan`.
    z : Tensor [B, T, H P], optional
    activation : {None, "silu", "swish"}
    headdim : int, optional
        P; needed unless z or D [H, P] tells it.
    ngroups : int

    Returns
    -------
    Tensor [B, T, H P]
    """
    heads = dt.shape[2]
    if z is not None:
        headdim = z.shape[-1] // heads
    elif D is not None and D.dim() == 2:
        headdim = D.shape[1]
    if headdim is None:
        raise ValueError("mamba_conv1d_scan_ref: headdim is needed without z and D [H, P]")
    x, B, C = _split_maps(
        _conv(causal_conv1d_ref, xBC, conv1d_weight, conv1d_bias, activation), heads * headdim, ngroups
    )
    z = None if z is None else z.unflatten(-1, (heads, headdim))
    y = _scan_of_channels(
        selective_scan_ref, x.unflatten(-1, (heads, headdim)), dt, A, B, C, D, z, dt_bias, dt_softplus, dt_limit
    )
    return y.flatten(2)


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: Limits = UNLIMITED,
    return_final_states: bool = False,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's block between its projections: convolution, scan, gated norm, and the output projection if given.

    Parameters
    ----------
    zxbcdt : Tensor [B, T, 2 M + 2 H P + 2 G N + H]
        z0, x0 (of an MLP of M channels beside the scan, M >= 0), z, x, B, C, dt.
    conv1d_weight : Tensor [H P + 2 G N, W]
    conv1d_bias : Tensor [H P + 2 G N] or None
    dt_bias, A : Tensor [H]
    D : Tensor [H] or [H, P]
    chunk_size, initial_states, seq_idx, dt_limit, return_final_states, state_dtype
        As in `mamba_chunk_scan_combined`; dt goes through softplus.
    activation : {None, "silu", "swish"}
    rmsnorm_weight : Tensor [H P], optional
        The norm is by groups of H P / G channels; without it y is y silu(z).
    rmsnorm_eps : float
    outproj_weight : Tensor [D, M + H P], optional
    outproj_bias : Tensor [D], optional
    headdim : int, optional
        P; needed if D is [H].
    ngroups : int
    norm_before_gate : bool

    Returns
    -------
    Tensor [B, T, M + H P or D], and with `return_final_states` a float32 Tensor [B, H, P, N].
    """
    zx0, z, xBC, dt = _split(zxbcdt, conv1d_weight, D, headdim, ngroups)
    heads, width = z.shape[2:]
    x, B, C = _split_maps(
        _conv(causal_conv1d_fn, xBC, conv1d_weight, conv1d_bias, activation, seq_idx), heads * width, ngroups
    )
    y, states = mamba_chunk_scan_combined(
        x.unflatten(-1, (heads, width)),
        dt,
        A,
        B,
        C,
        chunk_size,
        D,
        None if rmsnorm_weight is not None else z,
        dt_bias,
        initial_states,
        seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
        return_final_states=True,
    )
    y = y.flatten(2)
    if rmsnorm_weight is not None:
        size = heads * width // ngroups
        y = rmsnorm_fn(y, rmsnorm_weight, None, z.flatten(2), rmsnorm_eps, size, norm_before_gate)
    if zx0.shape[-1]:
        y = torch.cat([swiglu(zx0), y], dim=-1)
    if outproj_weight is not None:
        y = F.linear(y.to(outproj_weight.dtype), outproj_weight, outproj_bias)
    return (y, states) if return_final_states else y


def mamba_split_conv1d_scan_ref(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    dt_limit: Limits = UNLIMITED,
    activation: str = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> Tensor:
    """`mamba_split_conv1d_scan_combined` from the references of its parts, but with one norm over all channels."""
    _, z, xBC, dt = _split(zxbcdt, conv1d_weight, D, headdim, ngroups)
    gate = None if rmsnorm_weight is not None else z.flatten(2)
    y = mamba_conv1d_scan_ref(
        xBC,
        conv1d_weight,
        conv1d_bias,
        dt,
        A,
        chunk_size,
        D,
        gate,
        dt_bias,
        True,
        dt_limit,
        activation,
        z.shape[-1],
        ngroups,
    )
    if rmsnorm_weight is not None:
        y = rms_norm_ref(y, rmsnorm_weight, None, z.flatten(2), rmsnorm_eps, norm_before_gate=norm_before_gate)
    return y if outproj_weight is None else F.linear(y.to(outproj_weight.dtype), outproj_weight, outproj_bias)


def _split(
    zxbcdt: Tensor, conv1d_weight: Tensor, D: Tensor, headdim: int | None, ngroups: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Parts zx0 [B, T, 2 M], z [B, T, H, P], xBC, dt of what Mamba-2's input projection makes."""
    heads, width = (D.shape[0], headdim) if D.dim() == 1 else D.shape
    if width is None:
        raise ValueError("mamba_split_conv1d_scan_combined: headdim is needed with D [H]")
    channels, mixed = heads * width, conv1d_weight.shape[0]
    rest = zxbcdt.shape[-1] - channels - mixed - heads
    if rest < 0 or rest % 2 or (mixed - channels) % (2 * ngroups):
        raise ValueError(
            f"zxbcdt has {zxbcdt.shape[-1]} channels, expected 2 M + {channels} (z) + {mixed} (x, B, C) + {heads} (dt)"
        )
    zx0, z, xBC, dt = zxbcdt.split([rest, channels, mixed, heads], dim=-1)
    return zx0, z.unflatten(-1, (heads, width)), xBC, dt


def _conv(conv, xBC: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, seq_idx=None) -> Tensor:
    packed_rows = {} if seq_idx is None else {"seq_idx": seq_idx}
    return conv(xBC.transpose(1, 2), weight, bias, activation=activation, **packed_rows).transpose(1, 2)


def _split_maps(xBC: Tensor, channels: int, ngroups: int) -> tuple[Tensor, Tensor, Tensor]:
    """X [B, T, H P] and B, C [B, T, G, N]."""
    states = (xBC.shape[-1] - channels) // 2
    x, B, C = xBC.split([channels, states, states], dim=-1)
    return x, B.unflatten(-1, (ngroups, -1)), C.unflatten(-1, (ngroups, -1))

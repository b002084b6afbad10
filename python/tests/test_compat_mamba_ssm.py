"""The drop-ins of mamba_ssm against its plain references, over that package's own parameters (thinned)."""

import pytest
import torch
import torch.nn.functional as F
from compat_support import assert_agree, assert_near, outputs_and_gradients

from seqloom.compat.causal_conv1d.causal_conv1d_interface import causal_conv1d_ref
from seqloom.compat.mamba_ssm.ops.selective_scan_interface import (
    mamba_inner_fn,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)
from seqloom.compat.mamba_ssm.ops.triton import layer_norm, layernorm_gated
from seqloom.compat.mamba_ssm.ops.triton.selective_state_update import (
    selective_state_update,
    selective_state_update_ref,
)
from seqloom.compat.mamba_ssm.ops.triton.ssd_chunk_scan import chunk_scan
from seqloom.compat.mamba_ssm.ops.triton.ssd_chunk_state import _chunk_cumsum_fwd, chunk_state, chunk_state_varlen
from seqloom.compat.mamba_ssm.ops.triton.ssd_chunk_state import _chunk_state_fwd as chunk_state_fwd
from seqloom.compat.mamba_ssm.ops.triton.ssd_combined import (
    mamba_chunk_scan,
    mamba_chunk_scan_combined,
    mamba_conv1d_scan_ref,
    mamba_split_conv1d_scan_combined,
    mamba_split_conv1d_scan_ref,
    ssd_chunk_scan_combined_ref,
    ssd_selective_scan,
)
from seqloom.compat.mamba_ssm.ops.triton.ssd_state_passing import _state_passing_fwd, state_passing

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def scan_inputs(tokens, dtype=torch.float32, groups=1, variable=(True, True), is_complex=False, batch=2):
    channels, states = 4, 8
    wide = torch.complex64 if is_complex else torch.float32

    def map_of(is_variable):
        if not is_variable:
            return torch.randn(channels, states, dtype=wide)
        shape = (batch, states) if groups == 1 else (batch, groups, states)
        return torch.randn(*shape, tokens * (2 if is_complex else 1), dtype=dtype)

    A = -0.5 * torch.rand(channels, states, dtype=wide)
    u, delta = torch.randn(batch, channels, tokens, dtype=dtype), 0.5 * torch.rand(batch, channels, tokens, dtype=dtype)
    z = torch.randn(batch, channels, tokens, dtype=dtype)
    return u, delta, A, map_of(variable[0]), map_of(variable[1]), torch.randn(channels), z, 0.5 * torch.rand(channels)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [1, 128, 372])
def test_selective_scan(tokens, groups, dtype):
    torch.manual_seed(0)
    inputs = scan_inputs(tokens, dtype, groups)
    options = {"delta_softplus": True, "return_last_state": True}
    assert_agree(selective_scan_fn, selective_scan_ref, inputs, TOLERANCE[dtype], **options)


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("variable", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("has", [(False, False, False), (True, True, True), (True, False, True)])
@pytest.mark.parametrize("softplus", [False, True])
def test_selective_scan_variants(softplus, has, variable, is_complex):
    torch.manual_seed(0)
    *inputs, D, z, bias = scan_inputs(20, variable=variable, is_complex=is_complex)
    rest = [t if given else None for t, given in zip((D, z, bias), has, strict=True)]
    options = {"delta_softplus": softplus, "return_last_state": True}
    assert_agree(selective_scan_fn, selective_scan_ref, (*inputs, *rest), 1e-4, **options)


def inner_inputs(variable, is_complex, dtype):
    channels, states, rank, tokens = 48, 8, 6, 40
    wide = torch.complex64 if is_complex else torch.float32
    rows = rank + sum(variable) * states * (2 if is_complex else 1)
    maps = [None if v else torch.randn(channels, states, dtype=wide) for v in variable]
    return (
        torch.randn(2, 2 * channels, tokens, dtype=dtype),
        torch.randn(channels, 1, 3),
        torch.randn(channels),
        torch.randn(rows, channels, dtype=dtype) / 7,
        torch.randn(channels, rank, dtype=dtype) / 3,
        torch.randn(20, channels, dtype=dtype) / 7,
        torch.randn(20, dtype=dtype),
        -0.5 * torch.rand(channels, states, dtype=wide),
        *maps,
        torch.randn(channels),
        0.5 * torch.rand(channels),
    )


def plain_inner(xz, conv, conv_bias, x_proj, dt_proj, out, out_bias, A, B, C, D, bias):
    """mamba_inner_fn from the plain references of its parts."""
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_ref(x, conv.squeeze(1), conv_bias, activation="silu")
    rows = x.transpose(1, 2) @ x_proj.T
    maps, left = [], rows[..., dt_proj.shape[1] :]
    for given in (B, C):
        if given is None:
            states = A.shape[1] * (2 if A.is_complex() else 1)
            given, left = left[..., :states], left[..., states:]
            given = given.unflatten(-1, (A.shape[1], -1)).permute(0, 2, 1, 3).flatten(2)
        maps.append(given)
    delta = (rows[..., : dt_proj.shape[1]] @ dt_proj.T).transpose(1, 2)
    y = selective_scan_ref(x, delta, A, *maps, D, z, bias, True)
    return y.transpose(1, 2) @ out.T + out_bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("variable", [(False, False), (False, True), (True, False), (True, True)])
def test_mamba_inner(variable, is_complex, dtype):
    if is_complex and dtype != torch.float32:
        pytest.skip("complex scans are float32")
    torch.manual_seed(0)
    inputs = inner_inputs(variable, is_complex, dtype)
    assert_agree(mamba_inner_fn, plain_inner, inputs, TOLERANCE[dtype], 2 * TOLERANCE[dtype])
    assert_near(mamba_inner_ref(*inputs), mamba_inner_fn(*inputs), TOLERANCE[dtype])


def test_mamba_inner_norms_and_biases():
    torch.manual_seed(0)
    inputs = inner_inputs((True, True), False, torch.float32)
    biases = {"B_proj_bias": torch.randn(8), "C_proj_bias": torch.randn(8)}
    assert_near(mamba_inner_fn(*inputs, **biases), mamba_inner_ref(*inputs, **biases), 1e-4)
    norms = {"b_rms_weight": torch.rand(8), "c_rms_weight": torch.rand(8), "dt_rms_weight": torch.rand(48)}
    xz, conv, bias, x_proj, dt_proj, out, out_bias, A, _, _, D, dt_bias = inputs
    x, z = xz.chunk(2, 1)
    x = F.silu(F.conv1d(F.pad(x, (2, 0)), conv, bias, groups=48))
    dt, B, C = (x.transpose(1, 2) @ x_proj.T).split([6, 8, 8], -1)
    maps = [
        F.rms_norm(m, (m.shape[-1],), w, 1e-5).transpose(1, 2)
        for m, w in zip(
            (dt @ dt_proj.T, B, C), (norms["dt_rms_weight"], norms["b_rms_weight"], norms["c_rms_weight"]), strict=True
        )
    ]
    want = selective_scan_ref(x, maps[0], A, *maps[1:], D, z, dt_bias, True).transpose(1, 2) @ out.T + out_bias
    assert_near(mamba_inner_fn(*inputs, **norms, b_c_dt_rms_eps=1e-5), want, 1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_z", [False, True])
@pytest.mark.parametrize("states", [16, 32, 64, 5])
@pytest.mark.parametrize("channels", [64, 80])
def test_state_update(channels, states, has_z, dtype):
    torch.manual_seed(0)
    x, dt = torch.randn(2, channels, dtype=dtype), torch.randn(2, channels, dtype=dtype)
    state, z = torch.randn(2, channels, states, dtype=dtype), torch.randn_like(x) if has_z else None
    A, D, bias = -torch.rand(channels, states) - 1, torch.randn(channels), torch.rand(channels) - 4
    B, C = torch.randn(2, states), torch.randn(2, states)
    want_state = state.clone()
    got = selective_state_update(state, x, dt, A, B, C, D, z, bias, True)
    want = selective_state_update_ref(want_state, x, dt, A, B, C, D, z, bias, True)
    assert_near(state, want_state, TOLERANCE[dtype])
    assert_near(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("has_rows", [False, True])
@pytest.mark.parametrize("softplus", [False, True])
def test_state_update_with_heads(softplus, has_rows, groups, tied, dtype):
    torch.manual_seed(0)
    batch, heads, width, states = 3, 8, 24, 32
    state = torch.randn(10 if has_rows else batch, heads, width, states, dtype=dtype)
    rows = torch.tensor([7, 0, 3], dtype=torch.int32) if has_rows else None
    x, z = torch.randn(batch, heads, width, dtype=dtype), torch.randn(batch, heads, width, dtype=dtype)
    shape = (heads, 1) if tied else (heads, width)
    dt = (torch.randn if softplus else torch.rand)(batch, *shape, dtype=dtype).expand(batch, heads, width)
    bias, D = (torch.rand(shape) - 4 * softplus).expand(heads, width), torch.randn(shape).expand(heads, width)
    A = (-torch.rand(*shape, 1 if tied else states) - 1).expand(heads, width, states)
    B, C = torch.randn(batch, groups, states), torch.randn(batch, groups, states)
    want_state = state[rows.long()].clone() if has_rows else state.clone()
    got = selective_state_update(state, x, dt, A, B, C, D, z, bias, softplus, rows)
    want = selective_state_update_ref(want_state, x, dt, A, B, C, D, z, bias, softplus)
    assert_near(state[rows.long()] if has_rows else state, want_state, TOLERANCE[dtype])
    assert_near(got, want, TOLERANCE[dtype])


def test_state_update_is_a_step_of_the_scan():
    torch.manual_seed(0)
    u, delta, A, B, C, D, z, bias = scan_inputs(9)
    want, last = selective_scan_fn(u, delta, A, B, C, D, z, bias, True, True)
    state = torch.zeros(2, 4, 8)
    for t in range(9):
        y = selective_state_update(state, u[..., t], delta[..., t], A, B[..., t], C[..., t], D, z[..., t], bias, True)
        assert_near(y, want[..., t], 1e-5)
    assert_near(state, last, 1e-5)


def ssd_inputs(tokens, dtype=torch.float32, groups=2, batch=2, heads=4, width=8, states=16):
    return (
        torch.randn(batch, tokens, heads, width, dtype=dtype),
        torch.randn(batch, tokens, heads, dtype=dtype),
        -torch.rand(heads) - 0.2,
        torch.randn(batch, tokens, groups, states, dtype=dtype),
        torch.randn(batch, tokens, groups, states, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 64, 150])
def test_chunk_scan(tokens, groups, dtype):
    torch.manual_seed(0)
    extra = (torch.randn(4, 8), torch.randn(2, tokens, 4, 8, dtype=dtype), torch.rand(4) - 2)

    def of(function):
        return lambda x, dt, A, B, C, D, z, bias: function(x, dt, A, B, C, 64, D, z, bias, dt_softplus=True)

    def wide(x, dt, A, B, C, D, z, bias):
        y = of(ssd_chunk_scan_combined_ref)(x.float(), dt, A, B.float(), C.float(), D, z.float(), bias)
        return y.to(x.dtype)

    assert_agree(of(mamba_chunk_scan), wide, (*ssd_inputs(tokens, dtype, groups), *extra), TOLERANCE[dtype])


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.05, 0.3)])
def test_chunk_scan_is_a_scan_of_channels(limit):
    torch.manual_seed(0)
    D, z, bias = torch.randn(4), torch.randn(2, 33, 4, 8), torch.rand(4) - 2

    def combined(x, dt, A, B, C, D, z, bias):
        return mamba_chunk_scan_combined(x, dt, A, B, C, 16, D, z, bias, dt_softplus=True, dt_limit=limit)

    def channels(x, dt, A, B, C, D, z, bias):
        return ssd_selective_scan(x, dt, A, B, C, D, z, bias, dt_softplus=True, dt_limit=limit)

    assert_agree(combined, channels, (*ssd_inputs(33), D, z, bias), 1e-4)


def test_chunk_scan_states():
    """Two halves through the states are the whole, with gradients through both."""
    torch.manual_seed(0)
    start = torch.randn(2, 4, 8, 16)

    def scan(x, dt, A, B, C, start):
        return mamba_chunk_scan_combined(
            x, dt, A, B, C, 16, initial_states=start, dt_softplus=True, return_final_states=True
        )

    def halves(x, dt, A, B, C, start):
        first, state = scan(x[:, :20], dt[:, :20], A, B[:, :20], C[:, :20], start)
        second, state = scan(x[:, 20:], dt[:, 20:], A, B[:, 20:], C[:, 20:], state)
        return torch.cat([first, second], 1), state

    assert_agree(scan, halves, (*ssd_inputs(45), start), 1e-4)


def test_chunk_scan_of_packed_sequences():
    torch.manual_seed(0)
    lengths = [[7, 1, 22], [3, 20, 7]]
    inputs, start = ssd_inputs(30), torch.randn(2, 4, 8, 16)
    seq_idx = torch.stack([torch.repeat_interleave(torch.arange(3), torch.tensor(row)) for row in lengths]).int()

    def packed(x, dt, A, B, C, start):
        return mamba_chunk_scan_combined(
            x, dt, A, B, C, 8, initial_states=start, seq_idx=seq_idx, dt_softplus=True, return_final_states=True
        )

    def one_by_one(x, dt, A, B, C, start):
        rows, states = [], []
        for b, parts in enumerate(lengths):
            ys, state = [], start[b : b + 1]
            pieces = (t[b : b + 1].split(parts, 1) for t in (x, dt, B, C))
            for x_s, dt_s, B_s, C_s in zip(*pieces, strict=True):
                y, last = mamba_chunk_scan_combined(
                    x_s, dt_s, A, B_s, C_s, 8, initial_states=state, dt_softplus=True, return_final_states=True
                )
                ys.append(y)
                state = None
            rows.append(torch.cat(ys, 1))
            states.append(last)
        return torch.cat(rows), torch.cat(states)

    assert_agree(packed, one_by_one, (*inputs, start), 1e-4)
    x, dt, A, B, C = (t[:1] if t.dim() > 1 else t for t in inputs)
    bounds = torch.tensor([0, 7, 8, 30])
    y, last, states = mamba_chunk_scan_combined(
        x, dt, A, B, C, 8, seq_idx=seq_idx[:1], cu_seqlens=bounds, dt_softplus=True, return_final_states=True,
        return_varlen_states=True,
    )  # fmt: skip
    want, want_last = one_by_one(*inputs, torch.zeros_like(start))
    assert_near(y, want[:1], 1e-4)
    assert_near(last, want_last[:1], 1e-4)
    assert states.shape == (3, 4, 8, 16)
    assert torch.equal(states[2:], last)
    before_padding = torch.tensor([0, 7, 8, 8])
    _, states_before = mamba_chunk_scan_combined(
        x, dt, A, B, C, 8, cu_seqlens=before_padding, dt_softplus=True, return_varlen_states=True
    )
    assert_near(states_before[:2], states[:2], 1e-5)
    assert not states_before[2].any()


@pytest.mark.parametrize("norm", [None, True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_conv1d_scan(dtype, groups, norm):
    torch.manual_seed(0)
    heads, width, states, tokens = 4, 8, 16, 37
    channels, mixed = heads * width, heads * width + 2 * groups * states
    # The plain reference norms all channels at once: the same as groups only with one.
    norm_weight = torch.rand(channels) if norm is not None and groups == 1 else None
    inputs = (
        torch.randn(2, tokens, channels + mixed + heads, dtype=dtype),
        torch.randn(mixed, 4) / 2,
        torch.randn(mixed),
        torch.rand(heads) - 2,
        -torch.rand(heads) - 0.2,
        torch.randn(heads),
        norm_weight,
        torch.randn(20, channels, dtype=dtype) / 6,
    )

    def of(function):
        def run(zxbcdt, conv, conv_bias, dt_bias, A, D, weight, out):
            return function(zxbcdt, conv, conv_bias, dt_bias, A, D, 16, rmsnorm_weight=weight, outproj_weight=out,
                            headdim=width, ngroups=groups, norm_before_gate=bool(norm))  # fmt: skip

        return run

    assert_agree(
        of(mamba_split_conv1d_scan_combined), of(mamba_split_conv1d_scan_ref), inputs, TOLERANCE[dtype],
        2 * TOLERANCE[dtype],
    )  # fmt: skip


def test_split_conv1d_scan_with_grouped_norm_and_mlp():
    torch.manual_seed(0)
    zxbcdt, conv, conv_bias = torch.randn(2, 12, 2 * 6 + 32 + 64 + 4), torch.randn(64, 4), torch.randn(64)
    dt_bias, A, D, weight = torch.rand(4) - 2, -torch.rand(4) - 0.2, torch.randn(4, 8), torch.rand(32)
    zx0, z, xBC, dt = zxbcdt.split([12, 32, 64, 4], -1)
    y, states = mamba_split_conv1d_scan_combined(
        zxbcdt, conv, conv_bias, dt_bias, A, D, 8, return_final_states=True, rmsnorm_weight=weight, ngroups=2,
        norm_before_gate=False,
    )  # fmt: skip
    scan = mamba_conv1d_scan_ref(
        xBC, conv, conv_bias, dt, A, 8, D, dt_bias=dt_bias, dt_softplus=True, headdim=8, ngroups=2
    )
    gated = (scan * F.silu(z)).unflatten(-1, (2, 16))
    normed = F.rms_norm(gated, (16,), eps=1e-6).flatten(-2) * weight
    want = torch.cat([F.silu(zx0[..., :6]) * zx0[..., 6:], normed], -1)
    assert_near(y, want, 1e-4)
    assert states.shape == (2, 4, 8, 8)


def test_pieces_of_the_chunked_scan_make_the_whole():
    torch.manual_seed(0)
    x, dt, A, B, C = ssd_inputs(48, batch=1)
    bias, bounds = torch.rand(4) - 2, torch.tensor([0, 5, 30, 48])
    seq_idx = torch.repeat_interleave(torch.arange(3), bounds.diff()).unsqueeze(0)
    sums, step = _chunk_cumsum_fwd(dt, A, 16, bias, True)
    before, last = state_passing(chunk_state(B, x, step, sums).flatten(-2), sums[..., -1])
    got = chunk_scan(B, C, x, step, sums, before.unflatten(-1, (8, 16)))
    want, want_last = mamba_chunk_scan_combined(
        x, dt, A, B, C, 16, dt_bias=bias, dt_softplus=True, return_final_states=True
    )
    assert_near(got, want, 1e-4)
    assert_near(last.unflatten(-1, (8, 16)), want_last, 1e-4)
    added = chunk_state_fwd(B, x, step, sums, seq_idx)
    before, _ = _state_passing_fwd(added.flatten(-2), sums[..., -1], seq_idx=seq_idx, chunk_size=16)
    got = chunk_state_varlen(B[0], x[0], step[0], sums[0], bounds, before[0].unflatten(-1, (8, 16)))
    _, want = mamba_chunk_scan_combined(
        x, dt, A, B, C, 16, dt_bias=bias, cu_seqlens=bounds, dt_softplus=True, return_varlen_states=True
    )
    assert_near(got, want, 1e-4)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_z", [False, True])
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("norm_before_gate", [False, True])
def test_rms_norm_gated(norm_before_gate, group_size, has_z, has_bias, dtype):
    torch.manual_seed(0)
    x, z = torch.randn(2, 9, 64, dtype=dtype), torch.randn(2, 9, 64, dtype=dtype) if has_z else None
    weight, bias = torch.randn(64), torch.randn(64) if has_bias else None
    options = {"eps": 1e-5, "group_size": group_size, "norm_before_gate": norm_before_gate}
    assert_agree(layernorm_gated.rmsnorm_fn, layernorm_gated.rms_norm_ref, (x, weight, bias, z), TOLERANCE[dtype],
                 **options)  # fmt: skip


@pytest.mark.parametrize("group_size", [None, 16])
def test_layer_norm_gated(group_size):
    torch.manual_seed(0)
    x, z, weight, bias = torch.randn(2, 9, 64), torch.randn(2, 9, 64), torch.randn(64), torch.randn(64)

    def plain(x, weight, bias, z):
        size = group_size or 64
        return (F.layer_norm(x.unflatten(-1, (-1, size)), (size,)).flatten(-2) * weight + bias) * F.silu(z)

    def gated(x, weight, bias, z):
        return layernorm_gated.layernorm_fn(x, weight, bias, z, 1e-5, group_size)

    assert_agree(gated, plain, (x, weight, bias, z), 1e-5)


def test_norm_modules():
    x, z = torch.randn(3, 32), torch.randn(3, 32)
    for module, names in ((layernorm_gated.RMSNorm(32, group_size=8), {"weight"}),
                          (layernorm_gated.LayerNorm(32), {"weight", "bias"})):  # fmt: skip
        assert set(module.state_dict()) == names
        assert module(x, z).shape == x.shape
    norm = layer_norm.RMSNorm(32, eps=1e-6)
    y, stream = norm(x, z, prenorm=True, residual_in_fp32=True)
    assert_near(stream, x + z, 1e-6)
    assert_near(y, F.rms_norm(x + z, (32,), eps=1e-6), 1e-5)


@pytest.mark.parametrize("is_rms_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_with_residual(dtype, is_rms_norm):
    torch.manual_seed(0)
    rows = [torch.randn(2, 5, 32, dtype=dtype) for _ in range(2)]
    inputs = (
        rows[0],
        torch.randn(32),
        torch.randn(32),
        torch.randn(2, 5, 32),
        rows[1],
        torch.randn(32),
        torch.randn(32),
    )
    fn, ref = (
        (layer_norm.rms_norm_fn, layer_norm.rms_norm_ref) if is_rms_norm
        else (layer_norm.layer_norm_fn, layer_norm.layer_norm_ref)
    )  # fmt: skip

    def plain(*inputs):
        *y, stream = ref(*inputs, prenorm=True, upcast=True)
        return *(t.to(dtype) for t in y), stream

    assert_agree(lambda *inputs: fn(*inputs, prenorm=True), plain, inputs, TOLERANCE[dtype])


def test_norm_with_dropout():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 32), torch.rand(32)
    y, stream, mask, _ = layer_norm.rms_norm_fn(x, weight, None, dropout_p=0.5, prenorm=True, return_dropout_mask=True)
    assert 0 < mask.sum() < mask.numel()
    want, want_stream = layer_norm.rms_norm_ref(x, weight, None, dropout_p=0.5, prenorm=True, dropout_mask=mask)
    assert_near(y, want, 1e-5)
    assert_near(stream, want_stream, 1e-6)


def test_gradients_reach_initial_states_through_final_ones():
    torch.manual_seed(0)
    start = torch.randn(2, 4, 8, 16)

    def last(start):
        return mamba_chunk_scan_combined(
            *(t.abs() if i == 1 else t for i, t in enumerate(inputs)), 8, initial_states=start, return_final_states=True
        )[1]

    inputs = ssd_inputs(6)
    _, (gradient,) = outputs_and_gradients(last, (start,))
    weights = torch.randn(start.shape, generator=torch.Generator().manual_seed(7))
    decay = torch.exp((inputs[1].abs() * inputs[2]).sum(1))[..., None, None]
    assert_near(gradient, weights * decay, 1e-4)

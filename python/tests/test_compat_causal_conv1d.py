"""The drop-ins of causal_conv1d against its plain references, over that package's own parameters (thinned)."""

import pytest
import torch
from compat_support import assert_agree, assert_near

from seqloom.compat.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_ref,
    causal_conv1d_update,
    causal_conv1d_update_ref,
)
from seqloom.compat.causal_conv1d.causal_conv1d_varlen import (
    causal_conv1d_varlen_states,
    causal_conv1d_varlen_states_ref,
)
from seqloom.compat.causal_conv1d.cpp_functions import causal_conv1d_bwd_function, causal_conv1d_fwd_function

TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def parameters(channels, width, has_bias):
    return torch.randn(channels, width), torch.randn(channels) if has_bias else None


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("tokens", [1, 2, 8, 151])
def test_fn(tokens, width, has_bias, activation, channel_last, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 96, dtype=dtype)[..., 32:].transpose(1, 2)
    x = x if channel_last else x.contiguous()
    weight, bias = parameters(64, width, has_bias)
    assert_agree(causal_conv1d_fn, causal_conv1d_ref, (x, weight, bias), TOLERANCE[dtype], activation=activation)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_initial_states", [False, True])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 64, 129])
def test_states(tokens, width, has_initial_states, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, tokens, 40, dtype=dtype).transpose(1, 2)
    weight, bias = parameters(40, width, True)
    states = torch.randn(2, width - 1, 40, dtype=dtype).transpose(1, 2) if has_initial_states else None

    def of(function):
        return lambda x, weight, bias, states: function(
            x, weight, bias, initial_states=states, return_final_states=True, activation="swish"
        )

    assert_agree(of(causal_conv1d_fn), of(causal_conv1d_ref), (x, weight, bias, states), TOLERANCE[dtype])


def test_final_states_out_is_written():
    x, weight = torch.randn(2, 9, 5).transpose(1, 2), torch.randn(5, 4)
    into = torch.empty(2, 5, 3)
    _, states = causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=into)
    assert states is into
    assert torch.equal(into, x[..., -3:])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("padded", [False, True])
def test_seq_idx(padded, dtype):
    torch.manual_seed(0)
    lengths = [[5, 1, 20, 4], [17, 2, 1, 10]]
    x = torch.randn(2, 30, 24, dtype=dtype).transpose(1, 2)
    weight, bias = parameters(24, 4, True)
    seq_idx = torch.stack([torch.repeat_interleave(torch.arange(4), torch.tensor(row)) for row in lengths]).int()
    if padded:
        seq_idx[seq_idx == 3] = -1

    def one_by_one(x, weight, bias):
        rows = []
        for row, parts in zip(x.split(1), lengths, strict=True):
            ys = [causal_conv1d_ref(part, weight, bias, activation="silu") for part in row.split(parts, dim=2)]
            ys[3] = ys[3] * 0 if padded else ys[3]
            rows.append(torch.cat(ys, dim=2))
        return torch.cat(rows)

    def packed(x, weight, bias):
        return causal_conv1d_fn(x, weight, bias, seq_idx=seq_idx, activation="silu")

    assert_agree(packed, one_by_one, (x, weight, bias), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_cache_seqlens", [False, True])
@pytest.mark.parametrize("tokens", [None, 1, 4, 5])
@pytest.mark.parametrize("length", [3, 4, 12])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_update(activation, length, tokens, has_cache_seqlens, dtype):
    if has_cache_seqlens and tokens is not None and tokens > length:
        pytest.skip("a ring holds its length")
    torch.manual_seed(0)
    batch, channels = 6, 40
    x = torch.randn(batch, tokens or 1, channels, dtype=dtype).transpose(1, 2)
    x = x if tokens else x.squeeze(-1)
    state = torch.randn(batch, length, channels, dtype=dtype).transpose(1, 2)
    weight, bias = parameters(channels, 4, True)
    seen = torch.randint(0, 1024, (batch,), dtype=torch.int32) if has_cache_seqlens else None
    want_state = state.clone()
    got = causal_conv1d_update(x, state, weight, bias, activation, seen)
    want = causal_conv1d_update_ref(x, want_state, weight, bias, activation, seen)
    assert torch.equal(state, want_state)
    assert_near(got, want, TOLERANCE[dtype])


@pytest.mark.parametrize("has_cache_seqlens", [False, True])
def test_update_of_some_rows_of_the_state(has_cache_seqlens):
    torch.manual_seed(0)
    x, states = torch.randn(5, 12, 2), torch.randn(20, 12, 6)
    weight, bias = parameters(12, 3, True)
    rows = torch.tensor([7, -1, 0, 19, -1], dtype=torch.int32)
    seen = torch.tensor([3, 0, 100, 6, 9], dtype=torch.int32) if has_cache_seqlens else None
    kept = rows >= 0
    want_states = states.clone()
    mine = want_states[rows[kept].long()]
    want = causal_conv1d_update_ref(x[kept], mine, weight, bias, "silu", None if seen is None else seen[kept])
    want_states[rows[kept].long()] = mine
    got = causal_conv1d_update(x, states, weight, bias, "silu", seen, rows)
    assert torch.equal(states, want_states)
    assert_near(got[kept], want, 1e-5)
    assert not got[~kept].any()


def test_varlen_states():
    x, bounds = torch.randn(30, 7), torch.tensor([0, 4, 4, 5, 30])
    got = causal_conv1d_varlen_states(x, bounds, 6)
    assert torch.equal(got, causal_conv1d_varlen_states_ref(x, bounds, 6))
    assert torch.equal(got[3], x[-6:].T)


def test_cpp_functions():
    torch.manual_seed(0)
    x, weight, bias, states = torch.randn(2, 5, 9), torch.randn(5, 4), torch.randn(5), torch.randn(2, 5, 3)
    last, dy, dlast = torch.empty(2, 5, 3), torch.randn(2, 5, 9), torch.randn(2, 5, 3)
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias, states)]
    want = causal_conv1d_ref(*inputs, return_final_states=True, activation="silu")
    assert_near(causal_conv1d_fwd_function(x, weight, bias, None, states, last, True), want[0].detach(), 1e-5)
    assert_near(last, want[1].detach(), 1e-6)
    dx = torch.empty_like(x)
    got = causal_conv1d_bwd_function(x, weight, bias, dy, None, states, dlast, dx, True, True)
    assert got[0] is dx
    for mine, theirs in zip(got, torch.autograd.grad(want, inputs, (dy, dlast)), strict=True):
        assert_near(mine, theirs, 1e-5)


def test_what_is_refused():
    x, weight = torch.randn(1, 4, 8), torch.randn(4, 3)
    with pytest.raises(NotImplementedError, match="activation"):
        causal_conv1d_fn(x, weight, activation="gelu")
    with pytest.raises(ValueError, match="seq_idx"):
        causal_conv1d_fn(x, weight, seq_idx=torch.zeros(1, 8, dtype=torch.int32), return_final_states=True)
    with pytest.raises(RuntimeError, match="row 3 of a state of 2 rows"):
        causal_conv1d_update(x, torch.zeros(2, 4, 2), weight, conv_state_indices=torch.tensor([3]))

"""The drop-ins of fla.ops against its plain references, over that package's own parameters (thinned)."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from compat_support import assert_agree, assert_near

from seqloom.compat.fla.ops import delta_rule, gated_delta_rule, gla, linear_attn, retention, simple_gla
from seqloom.compat.fla.ops._common import recurrence

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SHAPES = [(1, 63, 1, 16, 16), (2, 100, 3, 20, 12), (1, 130, 2, 32, 48)]  # B, T, H, K, V
LENGTHS = [1, 17, 64, 0, 18]


def qkv(shape, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    B, T, H, K, V = shape
    return [torch.randn(B, T, H, size, dtype=dtype) for size in (K, K, V)]


def gates(*shape, strength=1.0):
    return strength * F.logsigmoid(torch.randn(*shape))


def one_by_one(function, bounds):
    """function(*rows, state) of each packed sequence by itself."""

    def run(*tensors):
        *rows, states = tensors
        os, lasts = [], []
        for i, (begin, end) in enumerate(pairwise(bounds)):
            state = None if states is None else states[i : i + 1]
            if begin == end:
                lasts.append(state)
                continue
            o, last = function(*(t if t is None else t[:, begin:end] for t in rows), state)
            os.append(o)
            lasts.append(last)
        return torch.cat(os, 1), torch.cat(lasts)

    return run


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [gla.chunk_gla, gla.fused_chunk_gla, gla.fused_recurrent_gla])
def test_gla(function, shape, dtype):
    B, T, H, K, V = shape
    inputs = (*qkv(shape, dtype), gates(B, T, H, K), torch.randn(B, H, K, V))

    def fused(q, k, v, g, state):
        return function(q, k, v, g, initial_state=state, output_final_state=True)

    def naive(q, k, v, g, state):
        return gla.naive_recurrent_gla(q, k, v, g, state, True)

    assert_agree(fused, naive, inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("reverse", [False, True])
def test_gla_of_packed_sequences(reverse):
    bounds = bounds_of(LENGTHS)
    inputs = (*qkv((1, 100, 2, 16, 12)), gates(1, 100, 2, 16), torch.randn(5, 2, 16, 12))

    def fused(q, k, v, g, states):
        return gla.fused_recurrent_gla(
            q, k, v, g, scale=0.3, initial_state=states, output_final_state=True, reverse=reverse, cu_seqlens=bounds
        )

    def naive(q, k, v, g, state):
        rows = [t.flip(1) for t in (q, k, v, g)] if reverse else [q, k, v, g]
        o, last = recurrence(*rows[:3], 0.3, state, gk=rows[3])
        return (o.flip(1) if reverse else o), last

    assert_agree(fused, one_by_one(naive, bounds.tolist()), inputs, 1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_gla_with_gates_on_values(reverse, packed):
    q, k, v = qkv((1, 20, 2, 8, 6))
    gk, gv, state = gates(1, 20, 2, 8), gates(1, 20, 2, 6), torch.randn(2 if packed else 1, 2, 8, 6)
    bounds = torch.tensor([0, 7, 20]) if packed else None
    o, last = gla.fused_recurrent_gla(
        q, k, v, gk, gv, 1.0, state, True, reverse, state_v_first=False, cu_seqlens=bounds
    )
    for i, (begin, end) in enumerate([(0, 7), (7, 20)] if packed else [(0, 20)]):
        S = state[i]
        for t in reversed(range(begin, end)) if reverse else range(begin, end):
            S = gk[0, t].exp().unsqueeze(-1) * S * gv[0, t].exp().unsqueeze(-2)
            S = S + k[0, t].unsqueeze(-1) * v[0, t].unsqueeze(-2)
            assert_near(o[0, t], (q[0, t].unsqueeze(-1) * S).sum(-2), 1e-5)
        assert_near(last[i], S, 1e-5)


def test_states_may_have_values_first():
    q, k, v = qkv((2, 30, 2, 8, 6))
    g, beta, state = gates(2, 30, 2), torch.rand(2, 30, 2), torch.randn(2, 2, 8, 6)
    for function, arguments in [
        (gla.chunk_gla, (q, k, v, gates(2, 30, 2, 8))),
        (simple_gla.chunk_simple_gla, (q, k, v, g)),
        (simple_gla.fused_recurrent_simple_gla, (q, k, v, g)),
        (gated_delta_rule.chunk_gated_delta_rule, (q, F.normalize(k, dim=-1), v, g, beta)),
    ]:
        o, last = function(*arguments, initial_state=state, output_final_state=True)
        mine, mine_last = function(
            *arguments, initial_state=state.transpose(-1, -2), output_final_state=True, state_v_first=True
        )
        assert_near(mine, o, 1e-6)
        assert_near(mine_last.transpose(-1, -2), last, 1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "function",
    [simple_gla.chunk_simple_gla, simple_gla.fused_chunk_simple_gla, simple_gla.fused_recurrent_simple_gla],
)
def test_simple_gla(function, shape, dtype):
    B, T, H, K, V = shape
    inputs = (*qkv(shape, dtype), gates(B, T, H), torch.randn(B, H, K, V))

    def fused(q, k, v, g, state):
        return function(q, k, v, g, scale=0.4, initial_state=state, output_final_state=True)

    def naive(q, k, v, g, state):
        return simple_gla.naive_recurrent_simple_gla(q, k, v, g, 0.4, state)

    assert_agree(fused, naive, inputs, TOLERANCE[dtype])


def test_simple_gla_of_packed_sequences():
    bounds = bounds_of(LENGTHS)
    inputs = (*qkv((1, 100, 2, 16, 12)), gates(1, 100, 2), torch.randn(5, 2, 16, 12))

    def fused(q, k, v, g, states):
        return simple_gla.chunk_simple_gla(
            q, k, v, g, initial_state=states, output_final_state=True, cu_seqlens=bounds.int()
        )

    def naive(q, k, v, g, state):
        return simple_gla.naive_recurrent_simple_gla(q, k, v, g, None, state)

    assert_agree(fused, one_by_one(naive, bounds.tolist()), inputs, 1e-4)


def test_references_of_simple_gla_agree():
    q, k, v = qkv((2, 70, 2, 16, 12))
    g, state = gates(2, 70, 2), torch.randn(2, 2, 16, 12)
    want, last = simple_gla.naive_recurrent_simple_gla(q, k, v, g, initial_state=state)
    got, got_last = simple_gla.naive_chunk_simple_gla(q, k, v, g, state, True, chunk_size=16)
    assert_near(got, want, 1e-5)
    assert_near(got_last, last, 1e-5)
    want, _ = simple_gla.naive_recurrent_simple_gla(q, k, v, g)
    got, matrix = simple_gla.naive_parallel_simple_gla(q, k, v, g)
    assert_near(got, want, 1e-5)
    o, attentions = simple_gla.parallel_simple_gla(q, k, v, g, output_attentions=True)
    assert_near(o, want, 1e-4)
    assert_near(attentions, matrix, 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_retention(shape, dtype):
    inputs = qkv(shape, dtype)

    def naive(q, k, v):
        return retention.naive_retention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)

    for function in (
        retention.chunk_retention,
        retention.fused_chunk_retention,
        retention.fused_recurrent_retention,
        retention.parallel_retention,
    ):
        assert_agree(lambda *rows, f=function: f(*rows)[0], naive, inputs, TOLERANCE[dtype])


def test_retention_goes_on_from_a_state():
    q, k, v = qkv((2, 50, 3, 16, 12))
    whole, last = retention.chunk_retention(q, k, v, output_final_state=True)
    first, state = retention.chunk_retention(q[:, :20], k[:, :20], v[:, :20], output_final_state=True)
    second, state = retention.fused_recurrent_retention(
        q[:, 20:], k[:, 20:], v[:, 20:], initial_state=state, output_final_state=True
    )
    assert_near(torch.cat([first, second], 1), whole, 1e-5)
    assert_near(state, last, 1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_linear_attn(dtype, reverse, normalize):
    q, k, v = qkv((2, 70, 2, 16, 12), dtype)
    q, k = q.abs(), k.abs()  # the normaliser must not vanish
    inputs = (q, k, v, torch.rand(2, 2, 16, 12), torch.rand(2, 1, 2, 16))

    def fused(q, k, v, state, z):
        start = (state, z) if normalize else state
        return linear_attn.fused_recurrent_linear_attn(q, k, v, None, start, True, reverse, normalize)

    def naive(q, k, v, state, z):
        rows = [t.flip(1) for t in (q, k, v)] if reverse else [q, k, v]
        o, last = linear_attn.naive_recurrent_linear_attn(
            *rows, None, (state, z) if normalize else state, True, normalize
        )
        return (o.flip(1) if reverse else o), last

    assert_agree(fused, naive, inputs, TOLERANCE[dtype])
    if not reverse:
        got, none = linear_attn.chunk_linear_attn(q, k, v, normalize=normalize)
        assert none is None or none[0] is None
        assert_near(got, linear_attn.naive_chunk_linear_attn(q, k, v, normalize=normalize), TOLERANCE[dtype])


def test_linear_attn_of_packed_sequences():
    bounds = bounds_of(LENGTHS)
    q, k, v = qkv((1, 100, 2, 16, 12))
    q, k, states, z = q.abs(), k.abs(), torch.rand(5, 2, 16, 12), torch.rand(5, 1, 2, 16)
    o, (last, last_z) = linear_attn.chunk_linear_attn(q, k, v, None, (states, z), True, True, bounds)
    for i, (begin, end) in enumerate(pairwise(bounds.tolist())):
        part = slice(begin, end)
        if begin == end:
            assert torch.equal(last_z[i], z[i])
            continue
        want, (want_last, want_z) = linear_attn.naive_recurrent_linear_attn(
            q[:, part], k[:, part], v[:, part], None, (states[i : i + 1], z[i : i + 1]), True, True
        )
        assert_near(o[:, part], want, 1e-5)
        assert_near(last[i : i + 1], want_last, 1e-5)
        assert_near(last_z[i : i + 1], want_z, 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", [delta_rule.chunk_delta_rule, delta_rule.fused_recurrent_delta_rule])
def test_delta_rule(function, shape, dtype):
    B, T, H, K, V = shape
    q, k, v = qkv(shape, dtype)
    inputs = (q, F.normalize(k, dim=-1), v, torch.rand(B, T, H).to(dtype), torch.randn(B, H, K, V))

    def fused(q, k, v, beta, state):
        return function(q, k, v, beta, initial_state=state, output_final_state=True)

    def naive(q, k, v, beta, state):
        rows = (t.transpose(1, 2) for t in (q, k, v, beta))
        o, last = delta_rule.delta_rule_recurrence(*rows, state)
        return o.transpose(1, 2), last

    assert_agree(fused, naive, inputs, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("value_heads", [2, 4])
@pytest.mark.parametrize("options", [{}, {"use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True}])
@pytest.mark.parametrize("strength", [0.01, 1.0, 10.0])
@pytest.mark.parametrize(
    "function", [gated_delta_rule.chunk_gated_delta_rule, gated_delta_rule.fused_recurrent_gated_delta_rule]
)
def test_gated_delta_rule(function, strength, options, value_heads, dtype):
    B, T, H, K, V = 2, 75, 2, 16, 12
    q, k, _ = qkv((B, T, H, K, V), dtype)
    v = torch.randn(B, T, value_heads, V, dtype=dtype)
    g, beta = gates(B, T, value_heads, strength=strength), torch.rand(B, T, value_heads)
    inputs = (q, k, v, g, beta, torch.randn(B, value_heads, K, V))

    def fused(q, k, v, g, beta, state):
        return function(q, k, v, g, beta=beta, initial_state=state, output_final_state=True,
                        use_qk_l2norm_in_kernel=True, **options)  # fmt: skip

    def naive(q, k, v, g, beta, state):
        q, k = (t.float().repeat_interleave(value_heads // H, 2) for t in (q, k))
        q, k = (t * torch.rsqrt(t.square().sum(-1, keepdim=True) + 1e-6) for t in (q, k))
        beta = 2 * beta.sigmoid() if options else beta
        o, last = gated_delta_rule.naive_recurrent_gated_delta_rule(q, k, v, beta, g, None, state, True)
        return o.to(v.dtype), last

    assert_agree(fused, naive, inputs, TOLERANCE[dtype])


def test_gated_delta_rule_of_packed_sequences():
    bounds = bounds_of(LENGTHS)
    q, k, v = qkv((1, 100, 2, 16, 12))
    inputs = (q, F.normalize(k, dim=-1), v, gates(1, 100, 2), torch.rand(1, 100, 2), torch.randn(5, 2, 16, 12))

    def fused(q, k, v, g, beta, states):
        return gated_delta_rule.chunk_gated_delta_rule(
            q, k, v, g, beta, initial_state=states, output_final_state=True, cu_seqlens=bounds
        )

    def naive(q, k, v, g, beta, state):
        return gated_delta_rule.naive_recurrent_gated_delta_rule(q, k, v, beta, g, None, state, True)

    assert_agree(fused, one_by_one(naive, bounds.tolist()), inputs, 1e-4)


def test_gated_delta_rule_makes_its_gates():
    q, k, v = qkv((2, 40, 2, 16, 12))
    k, raw, A_log, bias, beta = (
        F.normalize(k, dim=-1),
        torch.randn(2, 40, 2),
        torch.randn(2),
        torch.randn(2),
        torch.rand(2, 40, 2),
    )
    made = -A_log.exp() * F.softplus(raw + bias)
    assert_near(gated_delta_rule.fused_gdn_gate(raw, A_log, bias), made, 1e-6)
    for function in (gated_delta_rule.chunk_gated_delta_rule, gated_delta_rule.fused_recurrent_gated_delta_rule):
        want, _ = function(q, k, v, made, beta=beta)
        got, _ = function(q, k, v, raw, beta=beta, use_gate_in_kernel=True, A_log=A_log, dt_bias=bias)
        assert_near(got, want, 1e-6)


def test_gates_and_rates_that_go_token_by_token():
    q, k, v = qkv((2, 20, 2, 8, 6))
    k, g, beta, state = F.normalize(k, dim=-1), gates(2, 20, 2), torch.rand(2, 20, 2), torch.randn(2, 2, 8, 6)
    want, last = gated_delta_rule.chunk_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True)
    for same in ({"gk": g.unsqueeze(-1).expand_as(k)}, {"gv": g.unsqueeze(-1).expand_as(v)}):
        got, got_last = gated_delta_rule.fused_recurrent_gated_delta_rule(
            q, k, v, **same, beta=beta.unsqueeze(-1).expand_as(v), initial_state=state, output_final_state=True
        )
        assert_near(got, want, 1e-5)
        assert_near(got_last, last, 1e-5)
    ones, _ = delta_rule.fused_recurrent_delta_rule(q, k, v)
    assert_near(ones, delta_rule.chunk_delta_rule(q, k, v, torch.ones(2, 20, 2))[0], 1e-6)


def test_references_of_the_delta_rule_agree():
    q, k, v = qkv((2, 70, 2, 16, 12))
    k, g, beta, state = F.normalize(k, dim=-1), gates(2, 70, 2), torch.rand(2, 70, 2), torch.randn(2, 2, 16, 12)
    want, last = gated_delta_rule.naive_recurrent_gated_delta_rule(q, k, v, beta, g, 0.5, state, True)
    got, got_last = gated_delta_rule.naive_chunk_gated_delta_rule(q, k, v, g, beta, 32, 0.5, state, True)
    assert_near(got, want, 1e-4)
    assert_near(got_last, last, 1e-4)
    rows = [t.transpose(1, 2) for t in (q, k, v, beta)]
    want, last = delta_rule.delta_rule_recurrence(*rows)
    got, got_last = delta_rule.delta_rule_chunkwise(*rows)
    assert_near(got, want, 1e-4)
    assert_near(got_last, last, 1e-4)


def test_what_is_refused():
    q, k, v = qkv((2, 8, 1, 4, 4))
    g = gates(2, 8, 1)
    with pytest.raises(DeprecationWarning, match="head_first"):
        simple_gla.chunk_simple_gla(q, k, v, g, head_first=True)
    with pytest.raises(NotImplementedError, match="cp_context"):
        gated_delta_rule.chunk_gated_delta_rule(q, k, v, g, torch.rand(2, 8, 1), cp_context=object())
    with pytest.raises(NotImplementedError, match="g and g_gamma"):
        simple_gla.chunk_simple_gla(q, k, v, g, torch.zeros(1))
    with pytest.raises(NotImplementedError, match="unheard_of"):
        gla.chunk_gla(q, k, v, gates(2, 8, 1, 4), unheard_of=1)
    with pytest.raises(ValueError, match="batch size"):
        gla.chunk_gla(q, k, v, gates(2, 8, 1, 4), cu_seqlens=torch.tensor([0, 8]))
    with pytest.raises(ValueError, match="use_beta_sigmoid_in_kernel"):
        gated_delta_rule.chunk_gated_delta_rule(q, k, v, g, torch.rand(2, 8, 1), allow_neg_eigval=True)
    with pytest.warns(DeprecationWarning, match="state_v_first"):
        simple_gla.chunk_simple_gla(q, k, v, g, transpose_state_layout=True)
    with pytest.raises(ValueError, match="both"):
        simple_gla.chunk_simple_gla(q, k, v, g, state_v_first=True, transpose_state_layout=True)
    simple_gla.chunk_simple_gla(q, k, v, g, chunk_size=32)

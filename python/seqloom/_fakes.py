"""Shapes, types and strides of the ops' results, for the fake tensors that ``torch.compile`` traces with.

One function an op, by its arguments' names. Outputs are contiguous but those of ``_transposed``, as src/ops/operator.h
says. Gradients need nothing here: NAME_backward returns what looks like the inputs. Ops that change states have none.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

_GRADIENT = "_backward"


def _wide(*tensors: Tensor) -> torch.dtype:
    """Type of sums and states: at least float32."""
    narrow = (torch.bfloat16, torch.float16)
    kinds = [torch.float32 if tensor.dtype in narrow else tensor.dtype for tensor in tensors]
    result = kinds[0]
    for kind in kinds[1:]:
        result = torch.promote_types(result, kind)
    return result


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype or x.dtype)


def _transposed(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Make an output [..., a, b] that lies in memory as [..., b, a]."""
    *rows, a, b = shape
    return like.new_empty((*rows, b, a), dtype=dtype or like.dtype).transpose(-1, -2)


def _sequences(x: Tensor, cu_seqlens: Tensor | None) -> int:
    return x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _affine_scan(a, b, initial_state=None, cu_seqlens=None):
    return _like(b), b.new_empty((_sequences(b, cu_seqlens), *b.shape[2:]), dtype=_wide(a, b))


def _attention_merge(o1, lse1, o2, lse2):
    return _like(o1), _like(lse1, _wide(lse1, lse2))


def _causal_conv1d(x, weight, bias=None, initial_state=None, silu=False, cu_seqlens=None):
    state = (_sequences(x, cu_seqlens), x.shape[1], weight.shape[1] - 1)
    return _transposed(x, *x.shape), _transposed(x, *state, dtype=_wide(x))


def _recurrence(q, v, cu_seqlens=None):
    """O like v and S [B, H, K, V]."""
    return _like(v), q.new_empty((_sequences(q, cu_seqlens), q.shape[2], q.shape[3], v.shape[3]), dtype=_wide(q))


def _delta_rule(q, k, v, beta, log_decay=None, scale=1.0, initial_state=None, cu_seqlens=None, chunk=64):
    return _recurrence(q, v, cu_seqlens)


def _ema(x, delta, alpha, beta, gamma, omega, initial_state=None, lengths=None, chunk=64):
    return _like(x), x.new_empty((x.shape[0], *gamma.shape), dtype=_wide(x))


def _gated_linear_attention(q, k, v, log_decay=None, scale=1.0, initial_state=None, cu_seqlens=None, chunk=64):
    return _recurrence(q, v, cu_seqlens)


def _normalized_gated_linear_attention(
    q, k, v, log_decay=None, scale=1.0, eps=1e-6, initial_state=None, initial_z=None, cu_seqlens=None, chunk=64
):
    o, state = _recurrence(q, v, cu_seqlens)
    return o, state, state.new_empty(state.shape[:3])


def _linear(x, weight, scale=None, bias=None):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _linear_cross_entropy(hidden, weight, targets, ignored=-100, rows=0):
    return hidden.new_empty((), dtype=_wide(hidden, weight))


def _lora(x, weight, bias, A, B, alpha):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _newton_schulz(x, steps=5, quintic=(), eps=1e-7):
    return _like(x)


def _newton_schulz_factor(gram, steps=5, quintic=(), eps=1e-7):
    return _like(gram)


def _pack_padding(x, mask, allow_holes=False):
    context = torch.library.get_ctx()
    tokens, longest = context.new_dynamic_size(), context.new_dynamic_size()
    indices = x.new_empty((tokens,), dtype=torch.int64)
    cu_seqlens = x.new_empty((x.shape[0] + 1,), dtype=torch.int64)
    return x.new_empty((tokens, *x.shape[2:])), cu_seqlens, indices, longest


def _unpack_padding(data, indices, batch, tokens):
    return data.new_empty((batch, tokens, *data.shape[1:]))


def _elementwise_polynomial(x, coeff):
    return _like(x)


def _polynomial_features(x, coeff):
    width = 1
    for j in range(1, coeff.shape[0]):
        width = width * (x.shape[-1] + j) // j
    return x.new_empty((*x.shape[:-1], width))


def _prefix_softmax_scan(s, v, mask=None, initial_m=None, initial_u=None, initial_w=None, cu_seqlens=None, chunk=32):
    heads, wide = (_sequences(s, cu_seqlens), s.shape[1]), _wide(s, v)
    m, u = (s.new_empty(heads, dtype=kind) for kind in (_wide(s), wide))
    return _like(v), m, u, v.new_empty((*heads, v.shape[3]), dtype=wide)


def _rms_norm(x, weight, eps=1e-5):
    return _like(x)


def _gated_rms_norm(x, z, weight, eps=1e-5, norm_before_gate=True):
    return _like(x)


def _rotary(x, cos, sin, interleaved=False):
    return _like(x)


def _rwkv6(r, k, v, w, u, initial_state=None, cu_seqlens=None, chunk=64):
    return _recurrence(r, v, cu_seqlens)


def _rwkv7(r, w, k, v, a, b, initial_state=None, cu_seqlens=None, chunk=64):
    return _recurrence(r, v, cu_seqlens)


def _selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, initial_state=None, cu_seqlens=None
):
    state = (_sequences(u, cu_seqlens), u.shape[1], A.shape[1])
    return _transposed(u, *u.shape), _transposed(u, *state, dtype=_wide(u, A))


def _ssd(
    x,
    dt,
    A,
    B,
    C,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    dt_limit=(),
    initial_state=None,
    cu_seqlens=None,
    chunk_size=64,
):
    state = (_sequences(x, cu_seqlens), x.shape[2], x.shape[3], B.shape[3])
    return _like(x), _transposed(x, *state, dtype=_wide(x))


def _segsum(x):
    return x.new_empty((*x.shape, x.shape[-1]))


def _varlen_attention(
    q, k, v, cu_seqlens_q, cu_seqlens_k, causal=False, window=None, scale=None, keep=None, bias=None, softcap=None
):
    return _like(q), q.new_empty(q.shape[:2], dtype=_wide(q))


def _vector_quantize(x, codewords, keep=None):
    return _like(x), x.new_empty(x.shape[:3], dtype=torch.int64), x.new_empty((), dtype=_wide(x, codewords))


# Ops that move states on in place: what they return beside.


def _attention_step(
    q, k, v, keys, values, lengths, scale, window=None, frequencies=None, positions=(), interleaved=False
):
    return _like(q)


def _causal_conv1d_step(x, weight, bias, windows, silu=False):
    return _like(x)


def _causal_conv1d_update(x, state, weight, bias=None, silu=False, seen=None, rows=None):
    return _transposed(x, *x.shape)


def _gated_linear_attention_step(q, k, v, log_decay, scale, states):
    return _like(v)


def _selective_scan_step(u, delta, A, B, C, D, z, delta_bias, delta_softplus, states):
    return _like(u)


def _selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, rows=None):
    return _like(x)


def _gradients(arguments: tuple) -> list[Tensor]:
    *inputs, _, wanted = arguments
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    return [torch.empty_like(tensor) for tensor, want in zip(tensors, wanted, strict=True) if want]


def _schemas() -> list[torch.FunctionSchema]:
    return [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("seqloom::")]


def _registered() -> set[str]:
    return {schema.name.split("::")[1] for schema in _schemas()}


def names() -> list[str]:
    """List the library's ops, their gradients left out."""
    return sorted(name for name in _registered() if not name.endswith(_GRADIENT))


def register() -> None:
    """Make the functions above known to torch; an op without one cannot be traced."""
    registered = _registered()
    for name in names():
        fake: Callable | None = globals().get("_" + name)
        if fake is not None:
            torch.library.register_fake(f"seqloom::{name}", fake)
        if name + _GRADIENT in registered:
            torch.library.register_fake(f"seqloom::{name}{_GRADIENT}", lambda *arguments: _gradients(arguments))
    # Code that torch.compile keeps on disk calls the ops by place: with other schemas it is other code.
    schemas = "\n".join(sorted(str(schema) for schema in _schemas()))
    torch.compiler.config.cache_key_tag += "seqloom-" + hashlib.sha256(schemas.encode()).hexdigest()[:16]

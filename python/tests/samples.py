"""Small inputs of every op: what the tests of ops run on. A new op without samples fails test_ops.py."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

B, T, H, K, V, E, N, D = 2, 5, 2, 3, 4, 4, 3, 6


@dataclass
class Sample:
    """One call: `tensors` by argument name, of which the floating ones want a gradient, and the other arguments."""

    op: str
    tensors: dict[str, Tensor]
    others: dict = field(default_factory=dict)

    def __str__(self) -> str:
        optional = [name for name in self.tensors if name in ("initial_state", "cu_seqlens", "log_decay", "z", "mask")]
        return "-".join([self.op, *optional])

    def overload(self):
        """Its op."""
        return getattr(torch.ops.seqloom, self.op).default

    def call(self, **tensors: Tensor):
        """The op of these tensors."""
        return self.overload()(**{**self.tensors, **tensors}, **self.others)

    def to(self, dtype: torch.dtype, gradients: bool = True) -> "Sample":
        """The same sample as leaves of another type."""
        moved = {}
        for name, tensor in self.tensors.items():
            floating = tensor.is_floating_point()
            moved[name] = tensor.detach().to(dtype) if floating else tensor
            moved[name].requires_grad_(floating and gradients and name not in NO_GRADIENT)
        return Sample(self.op, moved, self.others)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that want a gradient."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.requires_grad}


NO_GRADIENT = {"initial_m"}  # a maximum is a constant to autograd


def _samples() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def below_zero(*shape: int) -> Tensor:
        return -0.1 - torch.rand(*shape, generator=generator, dtype=torch.float64)

    def positive(*shape: int) -> Tensor:
        return 0.1 + torch.rand(*shape, generator=generator, dtype=torch.float64)

    packed = torch.tensor([0, 3, T])
    found: list[Sample] = []

    def add(op: str, _others: dict | None = None, **tensors: Tensor) -> None:
        found.append(Sample(op, tensors, _others or {}))

    def heads(batch: int = B) -> dict[str, Tensor]:
        return {"q": normal(batch, T, H, K), "k": normal(batch, T, H, K), "v": normal(batch, T, H, V)}

    def state(rows: int = B) -> Tensor:
        return normal(rows, H, K, V)

    add("affine_scan", a=positive(B, T, D), b=normal(B, T, D))
    add("affine_scan", a=positive(B, T, D), b=normal(B, T, D), initial_state=normal(B, D))
    add("attention_merge", o1=normal(B, T, V), lse1=normal(B, T), o2=normal(B, T, V), lse2=normal(B, T))
    add("causal_conv1d", {"silu": True}, x=normal(B, E, T), weight=normal(E, 3), bias=normal(E))
    add("causal_conv1d", x=normal(B, E, T), weight=normal(E, 3), initial_state=normal(B, E, 2))
    add("causal_conv1d", x=normal(1, E, T), weight=normal(E, 3), cu_seqlens=packed)
    for gate in ({}, {"log_decay": below_zero(B, T, H)}, {"log_decay": below_zero(B, T, H), "initial_state": state()}):
        add("delta_rule", {"scale": 0.5, "chunk": 4}, **heads(), beta=positive(B, T, H), **gate)
    add("delta_rule", **heads(1), beta=positive(1, T, H), initial_state=state(2), cu_seqlens=packed)
    averages = {"delta": normal(D, N, 1), "alpha": normal(D, N, 1), "beta": normal(D, N, 1), "gamma": normal(D, N)}
    add("ema", {"chunk": 4}, x=normal(B, T, D), **averages, omega=normal(D))
    lengths = torch.tensor([5, 3])
    add("ema", x=normal(B, T, D), **averages, omega=normal(D), initial_state=normal(B, D, N), lengths=lengths)
    by_channel = {"log_decay": below_zero(B, T, H, K), "initial_state": state()}
    for gate in ({}, {"log_decay": below_zero(B, T, H)}, by_channel):
        add("gated_linear_attention", {"scale": 0.5, "chunk": 4}, **heads(), **gate)
    add("gated_linear_attention", **heads(1), initial_state=state(2), cu_seqlens=packed)
    positive_heads = {"q": positive(B, T, H, K), "k": positive(B, T, H, K), "v": normal(B, T, H, V)}
    add("normalized_gated_linear_attention", **positive_heads)
    add(
        "normalized_gated_linear_attention",
        **positive_heads,
        log_decay=below_zero(B, T, H),
        initial_state=state(),
        initial_z=positive(B, H, K),
    )
    targets = torch.tensor([1, 0, -100, 7, 3])
    for rows in (0, 2):
        add("linear_cross_entropy", {"rows": rows}, hidden=normal(5, D), weight=normal(8, D), targets=targets)
    add("linear", x=normal(B, T, D), weight=normal(E, D))
    add("linear", x=normal(B, T, D), weight=normal(E, D), bias=normal(E))
    lora = {"x": normal(B, T, D), "weight": normal(E, D), "A": normal(2, D), "B": normal(E, 2)}
    add("lora", {"alpha": 4.0}, **lora, bias=normal(E))
    add("lora", {"alpha": 4.0, "bias": None}, **lora)
    add("newton_schulz", {"steps": 3}, x=normal(2, 3, 4))
    add("newton_schulz", {"steps": 2}, x=normal(5, 3))
    x = normal(2, 3, 5)
    add("newton_schulz_factor", {"steps": 2}, gram=x @ x.mT)
    add("pack_padding", x=normal(B, T, D), mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool))
    add("unpack_padding", {"batch": 2, "tokens": 3}, data=normal(4, D), indices=torch.tensor([0, 1, 2, 3]))
    add("elementwise_polynomial", x=normal(B, T, K), coeff=normal(3))
    add("polynomial_features", x=normal(B, T, K), coeff=positive(4))
    add("prefix_softmax_scan", {"chunk": 2}, s=normal(B, H, T), v=normal(B, H, T, V))
    add(
        "prefix_softmax_scan",
        s=normal(B, H, T),
        v=normal(B, H, T, V),
        mask=torch.tensor([[[True] * 5], [[True, False, True, True, False]]]),
        initial_m=normal(B, H),
        initial_u=positive(B, H),
        initial_w=normal(B, H, V),
    )
    add("rms_norm", x=normal(B, T, D), weight=normal(D))
    add("rms_norm", x=normal(B, T, D).transpose(0, 1), weight=normal(D))
    for before in (True, False):
        add("gated_rms_norm", {"norm_before_gate": before}, x=normal(B, T, D), z=normal(B, T, D), weight=normal(D))
    angle = normal(T, 1, 2)
    for interleaved in (True, False):
        add("rotary", {"interleaved": interleaved}, x=normal(B, T, H, 5), cos=angle.cos(), sin=angle.sin())
    rows = {"r": normal(B, T, H, K), "k": normal(B, T, H, K), "v": normal(B, T, H, V), "w": below_zero(B, T, H, K)}
    add("rwkv6", **rows, u=normal(H, K))
    add("rwkv6", {"chunk": 4}, **rows, u=normal(H, K), initial_state=state())
    add("rwkv7", **rows, a=0.3 * normal(B, T, H, K), b=0.3 * normal(B, T, H, K))
    add("rwkv7", {"chunk": 4}, **rows, a=0.3 * normal(B, T, H, K), b=normal(B, T, H, K), initial_state=state())

    def scan(batch: int = B) -> dict[str, Tensor]:
        tokens = {"u": normal(batch, E, T), "delta": positive(batch, E, T), "A": below_zero(E, N)}
        return {**tokens, "B": normal(batch, N, T), "C": normal(batch, N, T)}

    add("selective_scan", **scan())
    add("selective_scan", {"delta_softplus": True}, **scan(), D=normal(E), z=normal(B, E, T), delta_bias=normal(E))
    add("selective_scan", **{**scan(), "B": normal(B, 2, N, T), "C": normal(E, N)}, initial_state=normal(B, E, N))
    add("selective_scan", **scan(1), cu_seqlens=packed)

    def dual(batch: int = B) -> dict[str, Tensor]:
        tokens = {"x": normal(batch, T, H, V), "dt": positive(batch, T, H), "A": below_zero(H)}
        return {**tokens, "B": normal(batch, T, 1, N), "C": normal(batch, T, 1, N)}

    add("ssd", **dual())
    rule = {"dt_softplus": True, "dt_limit": [0.0, 100.0], "chunk_size": 4}
    add("ssd", rule, **dual(), D=normal(H), z=normal(B, T, H, V), dt_bias=normal(H), initial_state=normal(B, H, V, N))
    add("ssd", **dual(1), cu_seqlens=packed)
    add("segsum", x=normal(B, T))
    offsets = {"cu_seqlens_q": packed, "cu_seqlens_k": packed}
    add("varlen_attention", q=normal(T, 2, K), k=normal(T, 1, K), v=normal(T, 1, K), **offsets)
    keep = torch.tensor([True, True, False, True, True])
    rule = {"causal": True, "window": 2, "scale": 0.3}
    add("varlen_attention", rule, q=normal(T, 2, K), k=normal(T, 2, K), v=normal(T, 2, K), **offsets, keep=keep)
    add("vector_quantize", x=normal(B, H, T, K), codewords=normal(H, 4, K))
    return found


SAMPLES = _samples()

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
        return "-".join([self.op, *(name for name in self.tensors if name in TELLING)])

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
            moved[name] = tensor.detach().to(FIXED.get(name, dtype)) if floating else tensor
            moved[name].requires_grad_(floating and gradients and name not in NO_GRADIENT)
        return Sample(self.op, moved, self.others)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that want a gradient."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.requires_grad}


@dataclass
class Update:
    """One call of an op that changes some of its `tensors`, or lists of tensors, in place; it has no gradient."""

    op: str
    tensors: dict[str, Tensor | list[Tensor]]
    others: dict = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.op, *(name for name in self.tensors if name in TELLING)])

    def overload(self):
        """Its op."""
        return getattr(torch.ops.seqloom, self.op).default

    def fresh(self, dtype: torch.dtype) -> dict[str, Tensor | list[Tensor]]:
        """Copies of the tensors in another type."""

        def copy(value: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
            if isinstance(value, list):
                return [copy(tensor) for tensor in value]
            return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()

        return {name: copy(value) for name, value in self.tensors.items()}

    def changed(self) -> list[str]:
        """Names of what the op changes."""
        return [x.name for x in self.overload()._schema.arguments if x.alias_info is not None and x.alias_info.is_write]


TELLING = ("initial_state", "initial_m", "cu_seqlens", "log_decay", "z", "mask", "bias", "scale", "seen", "rows")
NO_GRADIENT = {"initial_m", "scale"}  # a maximum is a constant to autograd; see test_gradients_of_coded_weights
FIXED = {"scale": torch.float32}


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
    add("affine_scan", a=positive(1, T, D), b=normal(1, T, D), initial_state=normal(2, D), cu_seqlens=packed)
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
    coded = (9 * normal(E, D)).round().to(torch.int8)
    add("linear", x=normal(B, T, D), weight=coded, scale=positive(E, 2))
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
    add("prefix_softmax_scan", s=normal(1, H, T), v=normal(1, H, T, V), cu_seqlens=packed)
    add("rms_norm", x=normal(B, T, D), weight=normal(D))
    add("rms_norm", x=normal(B, T, D).transpose(0, 1), weight=normal(D))
    for before in (True, False):
        add("gated_rms_norm", {"norm_before_gate": before}, x=normal(B, T, D), z=normal(B, T, D), weight=normal(D))
    angle = normal(T, 1, 2)
    for interleaved in (True, False):
        add("rotary", {"interleaved": interleaved}, x=normal(B, T, H, 5), cos=angle.cos(), sin=angle.sin())

    def receptance(batch: int = B) -> dict[str, Tensor]:
        tokens = heads(batch)
        return {"r": tokens["q"], "k": tokens["k"], "v": tokens["v"], "w": below_zero(batch, T, H, K)}

    def removal(batch: int = B) -> dict[str, Tensor]:
        return {"a": 0.3 * normal(batch, T, H, K), "b": 0.3 * normal(batch, T, H, K)}

    add("rwkv6", **receptance(), u=normal(H, K))
    add("rwkv6", {"chunk": 4}, **receptance(), u=normal(H, K), initial_state=state())
    add("rwkv6", **receptance(1), u=normal(H, K), initial_state=state(2), cu_seqlens=packed)
    add("rwkv7", **receptance(), **removal())
    add("rwkv7", {"chunk": 4}, **receptance(), **removal(), initial_state=state())
    add("rwkv7", **receptance(1), **removal(1), initial_state=state(2), cu_seqlens=packed)

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
    biased = {"q": normal(T, 2, K), "k": normal(T, 1, K), "v": normal(T, 1, K), **offsets}
    add("varlen_attention", {"softcap": 2.0}, **biased, bias=normal(2, 5))
    add("vector_quantize", x=normal(B, H, T, K), codewords=normal(H, 4, K))
    return found


def _updates() -> list[Update]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def below_zero(*shape: int) -> Tensor:
        return -0.1 - torch.rand(*shape, generator=generator)

    def channels_last(*shape: int) -> Tensor:
        *rows, channels, width = shape
        return normal(*rows, width, channels).transpose(-1, -2)

    R, G = 3, 1
    found: list[Update] = []

    def add(op: str, _others: dict | None = None, **tensors: Tensor | list[Tensor]) -> None:
        found.append(Update(op, tensors, _others or {}))

    def caches() -> list[Tensor]:
        return [normal(1, G, 6, 4) for _ in range(R)]

    def token() -> dict[str, Tensor]:
        return {"q": normal(R, H, 4), "k": normal(R, G, 4), "v": normal(R, G, 4)}

    rule = {"lengths": [1, 3, 6], "scale": 0.5}
    add("attention_step", rule, **token(), keys=caches(), values=caches())
    turned = {**rule, "window": 2, "positions": [0, 2, 5]}
    add("attention_step", turned, **token(), keys=caches(), values=caches(), frequencies=torch.tensor([1.0, 0.1]))
    windows = [channels_last(1, E, 2) for _ in range(R)]
    add("causal_conv1d_step", {"silu": True}, x=normal(R, E), weight=normal(E, 3), bias=normal(E), windows=windows)
    add("causal_conv1d_step", {"bias": None}, x=normal(R, E), weight=normal(E, 3), windows=[normal(1, E, 2)] * R)
    add("causal_conv1d_update", x=normal(B, E, 2), state=normal(B, E, 3), weight=normal(E, 3), bias=normal(E))
    places = {"seen": torch.tensor([0, 5]), "rows": torch.tensor([2, -1])}
    add("causal_conv1d_update", {"silu": True}, x=normal(B, E, 1), state=normal(R, E, 4), weight=normal(E, 3), **places)
    heads = {"q": normal(R, G, K), "k": normal(R, G, K), "v": normal(R, H, V)}
    for gate in ({}, {"log_decay": below_zero(R, H)}, {"log_decay": below_zero(R, H, K)}):
        given = {"scale": 0.5} if gate else {"scale": 1.0, "log_decay": None}
        add("gated_linear_attention_step", given, **heads, **gate, states=[normal(1, H, K, V) for _ in range(R)])
    scan = {"u": normal(R, E), "delta": normal(R, E), "A": below_zero(E, N), "B": normal(R, N), "C": normal(R, N)}
    states = [channels_last(1, E, N) for _ in range(R)]
    more = {"D": normal(E), "z": normal(R, E), "delta_bias": normal(E)}
    add("selective_scan_step", {"delta_softplus": True}, **scan, **more, states=states)
    without = {"D": None, "z": None, "delta_bias": None, "delta_softplus": True}
    add("selective_scan_step", without, **scan, states=states)
    channels = {"x": normal(B, E), "dt": normal(B, E), "A": below_zero(E, N), "B": normal(B, N), "C": normal(B, N)}
    add("selective_state_update", {"dt_softplus": True}, state=normal(B, E, N), **channels)
    tokens = {"x": normal(B, H, V), "dt": normal(B, H, V), "A": below_zero(H, V, N), "z": normal(B, H, V)}
    maps = {"B": normal(B, G, N), "C": normal(B, G, N), "D": normal(H, V), "dt_bias": normal(H, V)}
    rows = torch.tensor([2, -1])
    add("selective_state_update", {"dt_softplus": True}, state=normal(R, H, V, N), **tokens, **maps, rows=rows)
    return found


SAMPLES = _samples()
UPDATES = _updates()

# Written by `python -m seqloom.nn._stubs` from the registry; do not edit.
from typing import Literal

from seqloom.nn._decoder import Decoder as Decoder
from seqloom.nn._decoder import load_checkpoint as load_checkpoint
from seqloom.nn._decoder import save_checkpoint as save_checkpoint
from seqloom.nn._memory import Memory as Memory
from seqloom.nn._mixers import Mixer as Mixer

REGISTRY: dict[str, dict]

class Aaren(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        bias: bool = False,
    ) -> None: ...

class Atlas(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        dim_head: int | Literal["none"] = "none",
        memory_depth: int = 2,
        memory_hidden: int | Literal["none"] = "none",
        residual: bool = True,
        objective: str = "l2",
        loss_reduction: str = "sum",
        optimizer: str = "muon",
        chunk: int = 16,
        window: int = 4,
        omega_gate: bool = True,
        feature_map: str = "elementwise",
        poly_degree: int = 2,
        ns_steps: int = 5,
        max_lr: float = 0.1,
        conv_kernel: int = 4,
        qkv_activation: str = "silu",
        qk_norm: str = "l2",
        out_norm: bool = True,
        out_gate: str = "head",
    ) -> None: ...

class Attention(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        kv_heads: int | Literal["none"] = "none",
        head_dim: int | Literal["none"] = "none",
        causal: bool = True,
        window: int | Literal["none"] = "none",
        scale: float | Literal["none"] = "none",
        logit_softcap: float | Literal["none"] = "none",
        qk_norm: bool = False,
        qk_norm_eps: float = 1e-06,
        qkv_bias: bool = False,
        o_bias: bool = False,
        position: str = "none",
        rope_base: float = 10000.0,
        rope_layout: str = "half",
        rotary_dim: int | Literal["none"] = "none",
        rope_scaling: dict | list = ...,
        max_positions: int = 2048,
        num_buckets: int = 32,
        max_distance: int = 128,
        bias: str = "unique",
        carope: dict | list = ...,
    ) -> None: ...

class Deltanet(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        use_short_conv: bool = True,
        conv_size: int = 4,
        qk_activation: str = "silu",
        qk_norm: str = "l2",
        l2_eps: float = 1e-06,
        use_beta: bool = True,
        allow_neg_eigval: bool = False,
        use_gate: bool = False,
        norm_eps: float = 1e-05,
    ) -> None: ...

class ExtractorHe(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        context_length: int = 64,
        extract: str = "diag",
        adjust: str = "linear",
        length_bias: bool = True,
        out_proj: bool = True,
        causal: bool = True,
    ) -> None: ...

class ExtractorMe(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        context_length: int = 64,
        extract: str = "scalar",
        adjust: str = "input",
        length_bias: bool = False,
        out_proj: bool = False,
        causal: bool = True,
    ) -> None: ...

class ExtractorShe(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        context_length: int = 64,
        extract: str = "full",
        adjust: str = "linear",
        length_bias: bool = True,
        out_proj: bool = True,
        causal: bool = True,
    ) -> None: ...

class ExtractorWe(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        context_length: int = 64,
        extract: str = "diag",
        adjust: str = "diag",
        length_bias: bool = True,
        out_proj: bool = True,
        causal: bool = True,
    ) -> None: ...

class Gam(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        num_slots: int = 512,
        kernel_size: int = 3,
        score_scale: float = 1.0,
        bidirectional: bool = False,
    ) -> None: ...

class GatedDeltanet(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 6,
        head_dim: int = 256,
        num_v_heads: int | Literal["none"] = "none",
        expand_v: float = 2.0,
        use_short_conv: bool = True,
        conv_size: int = 4,
        use_gate: bool = True,
        allow_neg_eigval: bool = False,
        l2_eps: float = 1e-06,
        norm_eps: float = 1e-05,
    ) -> None: ...

class Gla(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        kv_heads: int | Literal["none"] = "none",
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_logit_normalizer: float = 16.0,
        gate_low_rank_dim: int = 16,
        clamp_min: float | Literal["none"] = "none",
        use_short_conv: bool = False,
        conv_size: int = 4,
        use_output_gate: bool = True,
        gate_fn: str = "swish",
        norm_eps: float = 1e-05,
    ) -> None: ...

class Hgrn(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        lower_bound: float = 0.0,
        bias: bool = True,
    ) -> None: ...

class Lawcat(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        kv_heads: int | Literal["none"] = "none",
        conv_size: int = 4,
        feature_map: str = "hedgehog",
        gate: str = "vector",
        gate_low_rank_dim: int = 16,
        gate_logit_normalizer: float = 16.0,
        normalize: bool = True,
        eps: float = 1e-06,
        rope: bool = False,
        rope_base: float = 10000.0,
    ) -> None: ...

class LinearAttention(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        feature_map: str = "elu1",
        normalize: bool = True,
        scale: float = 1.0,
        eps: float = 1e-06,
        output_norm: str = "identity",
        norm_eps: float = 1e-05,
        causal: bool = True,
        bias: bool = False,
    ) -> None: ...

class Longvq(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        z_dim: int = 64,
        v_dim: int | Literal["none"] = "none",
        ema_ndim: int = 8,
        num_codes: int = 64,
        window: int = 32,
        causal: bool = True,
        qk_norm: bool = True,
        gamma: float = 0.99,
        commit_weight: float = 0.0001,
        count_min: float = 0.01,
        reseed: bool = True,
        key_gradient: str = "all",
    ) -> None: ...

class Mamba(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["none"] = "none",
        bias: bool = False,
        conv_bias: bool = True,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 0.0001,
        dt_scale: float = 1.0,
    ) -> None: ...

class Mamba2(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        d_ssm: int | Literal["none"] = "none",
        rmsnorm: bool = True,
        norm_eps: float = 1e-05,
        norm_before_gate: bool = False,
        d_has_hdim: bool = False,
        dt_limit: list[float] = ...,
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 64,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 0.0001,
    ) -> None: ...

class MemoryCaching(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        of: dict | list = ...,
        aggregate: str = "grm",
        segmentation: str = "constant",
        segment: int = 64,
        segment_init: str = "restart",
        context: str = "mean_key",
        top_k: int = 2,
        temperature: float = 1.0,
        max_caches: int | Literal["none"] = "none",
        max_cache_mib: int = 4096,
        memory: str = "linear",
        heads: int = 4,
        dim_head: int | Literal["none"] = "none",
        qk_norm: str = "l2",
        retain: float = 1.0,
        beta: float = 0.0,
        lam: float = 1.0,
        memory_depth: int = 2,
        memory_hidden: int | Literal["none"] = "none",
        residual: bool = False,
        momentum: float = 0.9,
        lr: float = 0.01,
        chunk: int = 16,
    ) -> None: ...

class Nalaformer(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        layout: str = "1d",
        height: int | Literal["none"] = "none",
        width: int | Literal["none"] = "none",
        causal: bool = True,
        rope: bool = True,
        power: float = 3.0,
        power_offset: float = 0.5,
        lepe_kernel: int = 5,
        eps: float = 1e-06,
        ln_eps: float = 1e-05,
    ) -> None: ...

class Omeganet(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        dim_head: int | Literal["none"] = "none",
        memory_depth: int = 2,
        memory_hidden: int | Literal["none"] = "none",
        residual: bool = True,
        objective: str = "l2",
        loss_reduction: str = "sum",
        optimizer: str = "gd",
        chunk: int = 16,
        window: int = 4,
        omega_gate: bool = True,
        feature_map: str = "elementwise",
        poly_degree: int = 2,
        ns_steps: int = 5,
        max_lr: float = 0.001,
        conv_kernel: int = 4,
        qkv_activation: str = "silu",
        qk_norm: str = "l2",
        out_norm: bool = True,
        out_gate: str = "head",
    ) -> None: ...

class Retnet(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 8,
        expand_k: float = 1.0,
        expand_v: float = 2.0,
        rope_base: float = 10000.0,
        rope_layout: str = "half",
        gate_fn: str = "swish",
        norm_eps: float = 1e-05,
    ) -> None: ...

class Rwkv6(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        proj_low_rank_dim: int = 32,
        gate_low_rank_dim: int = 64,
        gate_fn: str = "swish",
        norm_eps: float = 1e-05,
    ) -> None: ...

class Rwkv7(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int | Literal["none"] = "none",
        layer: int = 0,
        decay_low_rank_dim: int | Literal["none"] = "none",
        a_low_rank_dim: int | Literal["none"] = "none",
        v_low_rank_dim: int | Literal["none"] = "none",
        gate_low_rank_dim: int | Literal["none"] = "none",
        norm_eps: float = 1e-05,
    ) -> None: ...

class Titans(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        heads: int = 4,
        dim_head: int | Literal["none"] = "none",
        memory_depth: int = 2,
        memory_hidden: int | Literal["none"] = "none",
        residual: bool = True,
        objective: str = "l2",
        loss_reduction: str = "sum",
        optimizer: str = "momentum",
        chunk: int = 32,
        window: int = 1,
        omega_gate: bool = False,
        feature_map: str = "none",
        poly_degree: int = 2,
        ns_steps: int = 5,
        max_lr: float = 0.1,
        conv_kernel: int = 4,
        qkv_activation: str = "silu",
        qk_norm: str = "l2",
        out_norm: bool = True,
        out_gate: str = "head",
    ) -> None: ...

class TitansMac(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        memory: dict | list = ...,
        attention: dict | list = ...,
        persistent: int = 4,
        segment: int = 64,
    ) -> None: ...

class TitansMag(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        memory: dict | list = ...,
        attention: dict | list = ...,
        persistent: int = 4,
    ) -> None: ...

class TitansMal(Mixer):
    def __init__(
        self,
        d_model: int,
        /,
        *,
        memory: dict | list = ...,
        attention: dict | list = ...,
        persistent: int = 4,
    ) -> None: ...

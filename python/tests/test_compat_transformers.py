"""Hugging Face models with random weights: the same with seqloom.compat.install() as without."""

import subprocess
import sys
import textwrap

import pytest
import torch

from seqloom import compat

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2}
MODELS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM, {**SMALL, "state_size": 8}),
    "mamba2": (
        transformers.Mamba2Config,
        transformers.Mamba2ForCausalLM,
        {**SMALL, "state_size": 16, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 16},
    ),
    "falcon_mamba": (transformers.FalconMambaConfig, transformers.FalconMambaForCausalLM, {**SMALL, "state_size": 8}),
    "jamba": (
        transformers.JambaConfig,
        transformers.JambaForCausalLM,
        {
            **SMALL,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": (
        transformers.BambaConfig,
        transformers.BambaForCausalLM,
        {
            **SMALL,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 16,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 16,
        },
    ),
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        transformers.Qwen3NextForCausalLM,
        {
            **SMALL,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def plain_afterwards():
    compat.uninstall()
    yield
    compat.uninstall()


@pytest.fixture(params=MODELS)
def model(request):
    config, kind, options = MODELS[request.param]
    torch.manual_seed(0)
    model = kind(config(**options, pad_token_id=0, bos_token_id=1, eos_token_id=2))
    for parameter in model.parameters():  # livelier than the initial ones
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return model


def ids_and_mask(padded):
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 97, (2, 21)), torch.ones(2, 21, dtype=torch.long)
    if padded:
        ids[0, :6], mask[0, :6] = 0, 0
    return ids, mask


def both_ways(work):
    """What `work` returns without and with the drop-ins."""
    compat.uninstall()
    plain = work()
    compat.install()
    return plain, work()


@pytest.mark.parametrize("padded", [False, True])
def test_logits(model, padded):
    ids, mask = ids_and_mask(padded)
    model.eval()
    with torch.no_grad():
        plain, mine = both_ways(lambda: model(ids, attention_mask=mask).logits)
    kept = mask.bool()
    torch.testing.assert_close(mine[kept], plain[kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_and_a_training_step(model, padded):
    ids, mask = ids_and_mask(padded)
    model.train()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def step():
        model.load_state_dict(weights, strict=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.zero_grad()
        loss = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        return loss.detach(), gradients, {n: p.detach().clone() for n, p in model.named_parameters()}

    plain, mine = both_ways(step)
    torch.testing.assert_close(mine[0], plain[0], rtol=1e-5, atol=1e-5)
    for part in (1, 2):
        assert mine[part].keys() == plain[part].keys()
        for name, want in plain[part].items():
            largest = want.abs().max().item()
            torch.testing.assert_close(mine[part][name], want, rtol=1e-3, atol=1e-3 * largest + 1e-7, msg=name)


@pytest.mark.parametrize("padded", [False, True])
def test_generated_tokens(model, padded):
    ids, mask = ids_and_mask(padded)
    model.eval()

    def generate():
        result = model.generate(
            ids, attention_mask=mask, max_new_tokens=12, min_new_tokens=12, do_sample=False, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return result.sequences, torch.stack(result.scores)

    plain, mine = both_ways(generate)
    assert torch.equal(mine[0], plain[0])
    torch.testing.assert_close(mine[1], plain[1], rtol=1e-4, atol=1e-4)


def test_the_kernels_are_called(model, monkeypatch):
    """Each model comes through seqloom for all of its mixers, in a prompt and in a step."""
    calls = []
    from seqloom.compat import _transformers

    for name, function in list(_transformers.DROP_INS.items()):

        def counted(*args, _name=name, _function=function, **kwargs):
            calls.append(_name)
            return _function(*args, **kwargs)

        counted.__signature__ = __import__("inspect").signature(function)
        monkeypatch.setitem(_transformers.DROP_INS, name, counted)
    compat.install()
    model.eval()
    ids, mask = ids_and_mask(False)
    with torch.no_grad():
        model.generate(ids, attention_mask=mask, max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert {"causal_conv1d_fn", "causal_conv1d_update"} <= set(calls)
    scans = {"selective_scan_fn", "mamba_chunk_scan_combined", "chunk_gated_delta_rule"}
    steps = {"selective_state_update", "fused_recurrent_gated_delta_rule"}
    assert scans & set(calls)
    assert steps & set(calls)


def test_bfloat16(model):
    ids, mask = ids_and_mask(False)
    model = model.to(torch.bfloat16).eval()
    with torch.no_grad():
        plain, mine = both_ways(lambda: model(ids, attention_mask=mask).logits.float())
    torch.testing.assert_close(mine, plain, rtol=0.1, atol=0.05)


def run_alone(code):
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_install_before_transformers_is_imported():
    out = run_alone("""
        import torch
        import seqloom.compat
        seqloom.compat.install()
        from transformers import MambaConfig, MambaForCausalLM
        torch.manual_seed(0)
        model = MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)).eval()
        ids = torch.randint(3, 97, (2, 21))
        with torch.no_grad():
            mine = model(ids).logits
            seqloom.compat.uninstall()
            plain = model(ids).logits
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)
        assert not torch.equal(mine, plain)
        from transformers.models.mamba import modeling_mamba
        assert not hasattr(modeling_mamba.mamba_selective_scan, "seqloom_original")
        from transformers.integrations import hub_kernels
        assert not hasattr(hub_kernels.use_kernel_func_from_hub_with_fallback, "seqloom_original")
        print("done")
    """)
    assert out.endswith("done\n")


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_torch_compile(name):
    pytest.importorskip("seqloom._fakes")  # how the ops look to a tracer
    config, kind, options = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**options)).eval()
    ids, _ = ids_and_mask(False)
    compat.install()
    with torch.no_grad():
        want = model(ids, use_cache=False).logits
        got = torch.compile(model, backend="aot_eager")(ids, use_cache=False).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

"""Random models of every family: saved by transformers, imported, compared, exported, loaded by transformers again.

    python tests/huggingface/round_trip_test.py build/release/seqloom
"""
import json
import math
import tempfile
from pathlib import Path

from common import TEXT, largest, save_tokenizer, seqloom, seqloom_logits, shaken, torch, transformers

VOCABULARY = 100
TOLERANCE = 1e-4
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 256}
MAMBA = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": VOCABULARY, "initializer_range": 0.5}


def gpt2(**more):
    return transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=256, vocab_size=VOCABULARY, **more)


def llama(**more):
    return transformers.LlamaConfig(**{**SMALL, **more})


def qwen2(**more):
    return transformers.Qwen2Config(**{**SMALL, **more})


def qwen3(**more):
    return transformers.Qwen3Config(**{**SMALL, "head_dim": 8, **more})


def mamba(**more):
    return transformers.MambaConfig(**{**MAMBA, "state_size": 5, **more})


def mamba2(**more):
    options = {"state_size": 6, "num_heads": 6, "head_dim": 8, "n_groups": 2, "chunk_size": 16}
    return transformers.Mamba2Config(**{**MAMBA, **options, **more})


CAUSAL = {
    "gpt2": gpt2(),
    "gpt2 three layers, inner 40": gpt2(n_inner=40, activation_function="gelu", layer_norm_epsilon=1e-3),
    "gpt2 untied": gpt2(tie_word_embeddings=False, activation_function="relu"),
    "llama": llama(),
    "llama tied, llama3 rope": llama(tie_word_embeddings=True, rope_parameters=LLAMA3, num_key_value_heads=1),
    "llama biases": llama(attention_bias=True, mlp_bias=True, head_dim=10, rms_norm_eps=1e-3),
    "llama linear rope": llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    "llama padded vocabulary": llama(vocab_size=112),
    "qwen2": qwen2(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen2 untied, windows": qwen2(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": qwen3(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "qwen3 biases": qwen3(attention_bias=True, num_key_value_heads=4, rms_norm_eps=1e-5),
    "mamba": mamba(),
    "mamba options": mamba(use_bias=True, use_conv_bias=False, conv_kernel=3, expand=1, time_step_rank=5,
                           tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    "mamba2": mamba2(),
    "mamba2 options": mamba2(use_bias=True, use_conv_bias=False, conv_kernel=3, tie_word_embeddings=True, n_groups=1,
                             layer_norm_epsilon=1e-3, time_step_limit=(0.3, 1.2)),
}


def reference(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :, :VOCABULARY]


def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(reference(model, ids)[-1].argmax().item())
    return ids[-count:]


def check_causal(name, config, folder):
    model = shaken(transformers.AutoModelForCausalLM.from_config(config))
    saved, run, back = folder / "saved", folder / "run", folder / "back"
    shards = {"max_shard_size": "20KB"} if "options" in name or "biases" in name else {}
    model.save_pretrained(saved, **shards)
    assert (saved / "model.safetensors.index.json").exists() == bool(shards)
    tokenizer = save_tokenizer(saved, bos="llama" in name)
    report = json.loads(seqloom("import", saved, "--out", run, "--json"))
    assert report["family"] == config.model_type and not report["unused_tensors"] and not report["unknown_keys"], report

    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    logits, said = seqloom_logits(run, folder, VOCABULARY)
    wanted = reference(model, ids)
    error = largest(logits, wanted[:-1])
    assert error < TOLERANCE, error
    assert wanted.std() > 0.1, "logits this small would hide errors"
    loss = torch.nn.functional.cross_entropy(wanted[:-1], torch.tensor(ids[1:])).item()
    assert math.isclose(math.log(said["perplexity"]), loss, abs_tol=TOLERANCE), (said, loss)

    made = json.loads(seqloom("generate", run, "--prompt", "the cat", "--tokens", 6, "--temperature", 0, "--json"))
    prompt = tokenizer.encode("the cat").ids
    text = tokenizer.decode(greedy(model, prompt, 6), skip_special_tokens=False).replace("\u0120", " ")
    assert made["text"].replace(" ", "") == text.replace(" ", ""), (made, text)

    assert seqloom("export", run, "--out", back).strip().endswith(config.model_type)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(back, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert (back / "tokenizer.json").read_text() == (saved / "tokenizer.json").read_text()
    error_back = largest(reference(again.eval(), ids), wanted)
    assert error_back < TOLERANCE, error_back
    print(f"ok {name}: {error:.1e} {error_back:.1e}", flush=True)


def check_halves(folder):
    """float16 and bfloat16 on disk are computed in float32."""
    for dtype in (torch.float16, torch.bfloat16):
        model = shaken(transformers.LlamaForCausalLM(llama())).to(dtype)
        saved, run = folder / f"{dtype}", folder / f"{dtype}.run"
        model.save_pretrained(saved)
        tokenizer = save_tokenizer(saved)
        seqloom("import", saved, "--out", run)
        wanted = reference(model.float(), tokenizer.encode(TEXT).ids)
        error = largest(seqloom_logits(run, folder, VOCABULARY)[0], wanted[:-1])
        assert error < TOLERANCE, (dtype, error)
        print(f"ok {dtype}: {error:.1e}")


def main():
    for name, config in CAUSAL.items():
        with tempfile.TemporaryDirectory() as folder:
            check_causal(name, config, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        check_halves(Path(folder))


if __name__ == "__main__":
    main()

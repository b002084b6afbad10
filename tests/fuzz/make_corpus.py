"""Makes the seed corpora of the fuzz targets under tests/fuzz/corpus/. Run from the repository's root."""
import json
import pathlib
import struct

FOLDER = pathlib.Path("tests/fuzz/corpus")


def write(target, name, content):
    (FOLDER / target).mkdir(parents=True, exist_ok=True)
    (FOLDER / target / name).write_bytes(content)


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def tokenizer(model=None, **others):
    tree = {
        "added_tokens": [{"id": 3, "content": "<|end|>", "special": True, "normalized": False}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 4}, "merges": ["a b"]} | (model or {}),
    } | others
    return json.dumps(tree, ensure_ascii=False).encode()


def main():
    two = {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2], 0, 8), "b": tensor("BOOL", [], 8, 9)}
    write("safetensors", "two", safetensors(two, bytes(9)))
    write("safetensors", "empty", safetensors({}))
    write("safetensors", "zero_size", safetensors({"z": tensor("BF16", [0, 1 << 40], 0, 0)}))
    write("safetensors", "overlap", safetensors({"a": tensor("U8", [2], 0, 2), "b": tensor("I8", [2], 1, 3)}, bytes(3)))
    write("safetensors", "deep", safetensors(b"[" * 100))
    write("safetensors", "twice", safetensors(b'{"__metadata__":{},"__metadata__":{}}'))

    write("tokenizer", "plain", tokenizer() + b"\0abab <|end|> ab")
    pairs = {"merges": [["a", "b"]], "ignore_merges": True, "byte_fallback": True, "unk_token": "a", "fuse_unk": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|[^\s\p{N}]|\s+(?!\S)"}, "behavior": "Isolated"}
    steps = [split, {"type": "Digits"}, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    write("tokenizer", "split", tokenizer(pairs, pre_tokenizer=sequence) + b"\0a\xcc\x81b 12\xffab")

    recipe = b'[task]\nkind = "language"\n[model]\nlayers = [{ mixer = { kind = "gla", heads = 4 } }, {}]\n[train]\nrate = 1e-3\n'
    write("recipe", "set_number", recipe + b"\0train.rate=0.1")
    write("recipe", "set_element", recipe + b"\0model.layers.0.mixer.kind=mamba")
    write("recipe", "set_list", recipe + b"\0a.b=[1, { c = true }]")
    write("recipe", "strings", b"a = '''x''y'''''\n\"b.c\".d = \"\\u00e9\\\"\"\n[[e.f]]\ng = 0x1f\n[[e.f]]\0e.f.1.g=")
    write("recipe", "dates", b"a = 1979-05-27T07:32:00Z\nb = nan\n")
    write("recipe", "deep", b"a." * 40 + b"a = " + b"[" * 70)

    chats = json.loads(pathlib.Path("tests/io/data/jinja.json").read_text())
    for name, source in chats["styles"].items():
        variables = json.dumps(chats["variables"]["tools with tools"]).encode()
        write("jinja", name, source.encode() + b"\0" + variables)
    snippets = [case["template"] for case in chats["cases"] if case["variables"] == "data"]
    for i in range(0, len(snippets), 20):
        write("jinja", f"snippets{i}", "\n".join(snippets[i:i + 20]).encode())


main()

"""Makes tests/io/data/*.json with Hugging Face `tokenizers`: small byte-level BPE and WordPiece tokenizers, and the ids
that the library gives for awkward texts. Run from the repository's root; with names, only those are made."""
import json
import pathlib
import sys

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "",
    " ",
    "   ",
    "Hello world",
    " Hello  world ",
    "a\tb\t\tc",
    "one\r\ntwo\r\n\r\nthree\n\n\nfour \n five",
    "I'm sure they're here, it's what we've said; I'd go, she'll stay, don't. IT'S WE'RE",
    "12 345 6789 3.14159 1e-5 ½ Ⅷ ٣",
    "naïve café — “quotes” … ‰",
    "你好,世界。日本語テキスト 한국어",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u0041\u030a \u1100\u1161\u11a8 \u212b \u2126 a\u0323\u0307 q\u0307\u0323 \u0958",
    "Здравствуй мир ΑΒΓ αβγ שלום مرحبا नमस्ते",
    "for (int i = 0; i < n; ++i) { x[i] += y[i]; }\n\treturn x;",
    "<|end|>a<|end|><|endless|> b<|end|",
    "plain  token here plaintoken",
    "\u00a0\u2003\u3000x\u200b\u2028y\u0085z",
    "\x00\x01\x7f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ſ K 'ſ 'S",
    "<0x41> Ġ Ċ ĠĠ",
]


def trained(pre_tokenizer, corpus, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|end|>", "<|endless|>"],
        ),
    )
    tokenizer.add_tokens([AddedToken("plain  token", normalized=True), AddedToken("n<|end", normalized=True)])
    return tokenizer


BERT_TEXTS = [
    "Unbelievably, tokenization of antidisestablishmentarianism works.",
    "e-mail (sent at 10:45) doesn't; [CLS] inside [SEP] and [sep] # ## ##x",
    "İstanbul IĞDIR ıiİI ŒUVRE straße GROẞ ὈΔΥΣΣΕΎΣ ΣΊΣΥΦΟΣ Ǆ Ⅷ ﬁ",
    "ḁ̇ q̣̇ ŗ̈ Å Å ệ ằ が ガ ㄀ 각 각 क़ लिखना",
    "你好world世界 𠀀𪜀 豈 々〆ヶ ㈱ ー",
    "a\u00adb\u200bc\u200dd\ufeffe\u2028f\u0085g\ufffdh\U000e0001i \ue000 \u0378",
    "$5 < 6 > 4 ^ ` ~ | + = … ‽ ⸿ ⁓ 、。「」 ؟ ॥ ₿ × ÷ ° § ¶ ¡¿",
    "x" * 100,
    "x" * 101,
    "é" * 100 + " " + "世" * 120,
]


def wordpiece(lowercase):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # what stands in TEXTS only is in part unknown
    corpus = BERT_TEXTS[:4] * 3 + ["the quick brown fox jumps over the lazy dog, walking walked walks"] * 5
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=400, show_progress=False, special_tokens=specials)
    )
    tokenizer.add_tokens([AddedToken("Naïve Token", normalized=True)])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def main():
    corpus = [pathlib.Path(path).read_text() for path in ("Makefile", "CMakeLists.txt", __file__)]
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    kinds = {
        "plain": trained(pre_tokenizers.ByteLevel(add_prefix_space=False), corpus),
        "prefixed": trained(pre_tokenizers.ByteLevel(add_prefix_space=True), corpus),
        "split_nfc": trained(pre_tokenizers.Sequence([split, bytes_only]), corpus, normalizers.NFC()),
        "wordpiece": wordpiece(lowercase=True),
        "wordpiece_cased": wordpiece(lowercase=False),
    }
    folder = pathlib.Path("tests/io/data")
    folder.mkdir(exist_ok=True)
    for name, tokenizer in kinds.items():
        if len(sys.argv) > 1 and name not in sys.argv:
            continue
        tree = json.loads(tokenizer.to_str())
        texts = TEXTS + (BERT_TEXTS if name.startswith("wordpiece") else [])
        if name == "split_nfc":  # as Llama 3 has it
            tree["model"]["ignore_merges"] = True
        if name == "plain":  # the older way to write merges
            tree["model"]["merges"] = [" ".join(pair) for pair in tree["model"]["merges"]]
        text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"))
        (folder / f"{name}.tokenizer.json").write_text(text)
        tokenizer = Tokenizer.from_str(text)
        cases = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in texts]
        if tokenizer.post_processor is not None:
            for case in cases:
                case["framed"] = tokenizer.encode(case["text"]).ids
        lines = ",\n".join(json.dumps(case) for case in cases)
        (folder / f"{name}.expected.json").write_text(f"[\n{lines}\n]\n")


main()

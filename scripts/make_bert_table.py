"""Writes src/io/bert_characters_table.cpp: how BERT's normaliser and pre-tokeniser treat each character.

    .venv/bin/python scripts/make_bert_table.py

The tokenizers package is asked, character by character: its tables of the Unicode Character Database are of several
versions, and ids must be those that a checkpoint was trained with.
"""
from tokenizers import normalizers, pre_tokenizers

SURROGATES = range(0xD800, 0xE000)


def normalizer(**on):
    options = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return normalizers.BertNormalizer(**{**options, **on}).normalize_str


clean, spaced = normalizer(clean_text=True), normalizer(handle_chinese_chars=True)
stripped, lowered = normalizer(strip_accents=True), normalizer(lowercase=True)
words = pre_tokenizers.BertPreTokenizer().pre_tokenize_str


def kind(c):
    """The class of a character; marks only show where nothing else removes them."""
    cleaned = clean(f"a{c}b")[1:-1]
    if cleaned == "":
        return "kControl"
    if cleaned == " ":
        return "kSpace"
    if [word for word, _ in words(f"a{c}b")] == ["a", c, "b"]:
        return "kPunctuation"
    if spaced(c) != c:
        return "kIdeograph"
    return "kMark" if stripped(c) == "" else "kOther"


def ranges():
    found = []
    for code in range(0x110000):
        of = "kOther" if code in SURROGATES else kind(chr(code))
        if found and found[-1][2] == of and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code, of])
    return [r for r in found if r[2] != "kOther"]


def lower_runs():
    """Characters of a run are `step` apart and all move by the same distance."""
    runs = []
    for code in range(0x110000):
        low = chr(code) if code in SURROGATES else lowered(chr(code))
        if low == chr(code) or len(low) > 1:
            continue  # U+0130 alone becomes two characters
        move = ord(low) - code
        if runs and runs[-1][3] == move and code - runs[-1][1] in (1, 2):
            gap = code - runs[-1][1]
            if runs[-1][2] in (0, gap):
                runs[-1][1:3] = [code, gap]
                continue
        runs.append([code, code, 0, move])
    return [(first, last, step or 1, move) for first, last, step, move in runs]


def table(name, struct, entries, out):
    print(f"constexpr {struct} {name}[] = {{", file=out)
    line = " "
    for entry in entries:
        text = " {" + ", ".join(entry) + "},"
        if len(line) + len(text) > 118:
            print(line, file=out)
            line = " "
        line += text
    print(f"{line}\n}};\n", file=out)


def main():
    assert [c for c in map(chr, range(0xD800)) if len(lowered(c)) > 1] == ["\u0130"]
    with open("src/io/bert_characters_table.cpp", "w") as out:
        print("// Written by scripts/make_bert_table.py.\n// clang-format off", file=out)
        print('#include "io/bert_characters.h"\n\nnamespace seqloom {\nnamespace {\n', file=out)
        print("using enum BertCharacter;\n", file=out)
        table("kRanges", "BertRange", [(hex(a), hex(b), of) for a, b, of in ranges()], out)
        table("kLower", "LowerRun", [(hex(a), hex(b), str(step), str(move)) for a, b, step, move in lower_runs()], out)
        print("}  // namespace\n", file=out)
        print("std::span<const BertRange> bert_ranges() { return kRanges; }\n", file=out)
        print("std::span<const LowerRun> lower_runs() { return kLower; }\n", file=out)
        print("}  // namespace seqloom", file=out)


if __name__ == "__main__":
    main()

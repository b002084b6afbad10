"""Writes src/io/nfc_table.cpp from Python's copy of the Unicode Character Database."""
import sys
import unicodedata


def decompositions():
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.decomposition(chr(code)).split()
        if parts and not parts[0].startswith("<"):
            first, second = ([int(part, 16) for part in parts] + [0])[:2]
            composes = second != 0 and unicodedata.normalize("NFC", chr(code)) == chr(code)
            yield code, first, second, composes


def combining_classes():
    ranges = []
    for code in range(sys.maxunicode + 1):
        value = unicodedata.combining(chr(code))
        if value == 0:
            continue
        if ranges and ranges[-1][1] == code - 1 and ranges[-1][2] == value:
            ranges[-1][1] = code
        else:
            ranges.append([code, code, value])
    return ranges


def rows(entries, width=120):
    line = " "
    for entry in entries:
        if len(line) + 1 + len(entry) + 1 > width:
            yield line
            line = " "
        line += " " + entry + ","
    yield line


def main():
    first = [f"{{0x{c:x}, 0x{a:x}, 0x{b:x}, {int(composes)}}}" for c, a, b, composes in decompositions()]
    second = [f"{{0x{a:x}, 0x{b:x}, {value}}}" for a, b, value in combining_classes()]
    with open("src/io/nfc_table.cpp", "w") as out:
        print(f"// Unicode {unicodedata.unidata_version}; written by scripts/make_nfc_table.py.", file=out)
        print("// clang-format off", file=out)
        print('#include "io/nfc_table.h"\n\nnamespace seqloom {\nnamespace {\n', file=out)
        print("constexpr Decomposition kDecompositions[] = {", *rows(first), "};\n", sep="\n", file=out)
        print("constexpr CombiningClass kCombiningClasses[] = {", *rows(second), "};\n", sep="\n", file=out)
        print("}  // namespace\n", file=out)
        print("std::span<const Decomposition> nfc_decompositions() { return kDecompositions; }\n", file=out)
        print("std::span<const CombiningClass> nfc_combining_classes() { return kCombiningClasses; }\n", file=out)
        print("}  // namespace seqloom", file=out)


main()

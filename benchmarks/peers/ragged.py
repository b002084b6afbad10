"""Rows of lengths uniform in [T / 5, T], padded against packed, in one layer: the time should follow the real tokens.

    python benchmarks/peers/ragged.py build/release/libseqloom.so [--quick] [--json FILE]
"""
from common import begin, finish, seqloom_bench, table


def main():
    options = begin(__doc__)
    lengths = "128,512" if options.quick else "128,512,2048"
    rows = table("A layer on 8 rows, D = 256, packed over padded", "mixer", "pass", "T", "real tokens", "time",
                 "time over tokens")
    for row in seqloom_bench(options, None, "--ragged", "--lengths", lengths, "--repeats", options.pairs):
        rows.add(row["mixer"], row["pass"], row["longest"], f"{row['token_ratio']:.2f}", f"{row['time_ratio']:.2f}",
                 f"{row['time_ratio'] / row['token_ratio']:.2f}")
    finish(options)


if __name__ == "__main__":
    main()

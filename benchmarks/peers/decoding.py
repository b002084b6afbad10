"""Decoding one stream of GPT-2 small's and Mamba-130M's shape, with their vocabulary, in float32, bfloat16 and int8.

    python benchmarks/peers/decoding.py build/release/libseqloom.so [--quick] [--threads N] [--json FILE]

Against llama.cpp (f32, bf16, q8_0) and transformers (float32, bfloat16); random weights. A prompt of 128 tokens is
read, then tokens are decoded one by one. seqloom's figures are those of `seqloom bench --weights`, a process of its
own; its int8 has a scale for every 32 columns, as q8_0 has. Run it with --threads 1 and with --threads 2.
"""
import statistics
import subprocess
import sys
import tempfile

import torch
from common import HERE, begin, finish, note, peer, seqloom_bench, table
from inference import PROMPT, LlamaCpp, Transformers, write_gpt, write_mamba

import models

FORMATS = {"float32": "F32", "bfloat16": "BF16", "int8": "Q8_0"}
GROUP = 32


class Shape:
    def __init__(self, name, recipe, layers, vocabulary, settings, model, write):
        self.name, self.recipe, self.vocabulary, self.model, self.write = name, recipe, vocabulary, model, write
        self.layers, self.settings = layers, ("model.width=768", f"model.layers.0.repeat={layers}", *settings)

    def seqloom_rates(self, options, weights):
        settings = [word for setting in self.settings for word in ("--set", setting)]
        form = ("--weights", weights, *(("--group", GROUP) if weights == "int8" else ()))
        result = seqloom_bench(options, HERE / self.recipe, *settings, *form, "--vocabulary", self.vocabulary,
                               "--lengths", PROMPT, "--only", "prefill,decode", "--decode", options.decode,
                               "--repeats", 1)
        row = result["rows"][0]
        return row["prefill_tokens_per_second"], row["decode_tokens_per_second"]


SHAPES = (Shape("GPT-2 small", "gpt.toml", 12, 50257, ("model.layers.0.mixer.heads=12",), models.transformers_gpt,
                write_gpt),
          Shape("Mamba-130M", "mamba.toml", 24, 50280, (), models.transformers_mamba, write_mamba))


def compare(rows, options, shape, weights, name, run):
    turns = [(run(), shape.seqloom_rates(options, weights)) for _ in range(options.pairs + 1)][1:]  # one warms up
    for i, what in enumerate((f"prompt of {PROMPT}", "decoding")):
        theirs, ours = (statistics.median(turn[side][i] for turn in turns) for side in (0, 1))
        ratio = statistics.median(turn[1][i] / turn[0][i] for turn in turns)
        rows.add(shape.name, weights, what, name, f"{theirs:.1f}", f"{ours:.1f}", f"{ratio:.2f}")


def against_transformers(rows, options, transformers, shape, weights):
    model = shape.model(transformers, 768, shape.layers).to(getattr(torch, weights))
    with torch.inference_mode():
        compare(rows, options, shape, weights, "transformers", Transformers(model, options).rates)


def against_llama_cpp(rows, options, llama_cpp, gguf, shape, weights):
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        shape.write(gguf, file.name, weights=FORMATS[weights])
        if subprocess.run([sys.executable, __file__, "probe", file.name], capture_output=True).returncode != 0:
            return note(f"llama.cpp {FORMATS[weights].lower()} dies on this machine and is not compared: {shape.name}")
        compare(rows, options, shape, weights, f"llama.cpp {FORMATS[weights].lower()}",
                LlamaCpp(llama_cpp, file.name, options).rates)


def probe(path):
    """Reads a prompt, in a process of its own: some kernels of llama.cpp end theirs on some machines."""
    import llama_cpp

    llama_cpp.Llama(path, n_ctx=256, verbose=False).eval(list(range(128)))


def main():
    if sys.argv[1:2] == ["probe"]:
        return probe(sys.argv[2])
    options = begin(__doc__)
    options.pairs = 2 if options.quick else 5  # a turn takes seconds
    options.decode = 16 if options.quick else 64
    columns = ("model", "weights", "what", "peer", "peer tokens/s", "seqloom tokens/s", "ratio")
    rows = table("Tokens/s, one stream", *columns)
    transformers, llama_cpp, gguf = peer("transformers"), peer("llama_cpp", "llama-cpp-python"), peer("gguf")
    if transformers:
        transformers.logging.set_verbosity_error()
    for shape in SHAPES:
        models.VOCABULARY = shape.vocabulary
        for weights in FORMATS:
            if transformers and weights != "int8":
                against_transformers(rows, options, transformers, shape, weights)
            if llama_cpp and gguf:
                against_llama_cpp(rows, options, llama_cpp, gguf, shape, weights)
    finish(options)


if __name__ == "__main__":
    main()

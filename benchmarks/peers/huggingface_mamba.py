"""Hugging Face's Mamba-130M on a CPU with seqloom.compat.install() beside the same without.

    python benchmarks/peers/huggingface_mamba.py build/release/libseqloom.so [--quick] [--threads N] [--json FILE]

One model, random float32 weights, in one process; the two take turns. A step of training is loss, gradients and AdamW.
"""
import os
import sys

import torch
from common import HERE, begin, clock, finish, paired, peer, rate, table

VOCABULARY = 50280
sys.path.insert(0, str(HERE.parents[1] / "python"))


class Work:
    """Reading a prompt, decoding behind it, and training, of one model."""

    def __init__(self, model, options):
        self.model, self.now = model, clock(options.threads)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def seconds(self, work):
        start = self.now()
        work()
        return self.now() - start

    def prompt(self, batch, tokens):
        """Seconds to read a prompt and find its next token."""
        self.model.eval()
        ids = torch.randint(VOCABULARY, (batch, tokens))
        with torch.inference_mode():
            return self.seconds(lambda: self.model(ids, use_cache=True, logits_to_keep=1))

    def decode(self, batch, tokens):
        """Seconds of `tokens` tokens, one by one, behind a short prompt."""
        self.model.eval()
        ids = torch.randint(VOCABULARY, (batch, 4))
        with torch.inference_mode():
            result = self.model(ids, use_cache=True, logits_to_keep=1)
            state = {"cache": result.cache, "ids": result.logits[:, -1:].argmax(-1)}

            def steps():
                for _ in range(tokens):
                    logits = self.model(state["ids"], cache=state["cache"], use_cache=True).logits
                    state["ids"] = logits[:, -1:].argmax(-1)

            return self.seconds(steps)

    def train(self, batch, tokens):
        """Seconds of a step of training."""
        self.model.train()
        ids = torch.randint(VOCABULARY, (batch, tokens))

        def step():
            self.model(ids, labels=ids).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return self.seconds(step)


def main():
    options = begin(__doc__)
    transformers = peer("transformers")
    if transformers:
        os.environ["SEQLOOM_LIBRARY"] = options.library
        from seqloom import compat

        transformers.logging.set_verbosity_error()
        config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=768, num_hidden_layers=24, state_size=16)
        work = Work(transformers.MambaForCausalLM(config), options)
        rows = table("Mamba-130M of transformers, float32, without and with seqloom.compat.install()", "what", "B", "T",
                     "tokens/s without", "tokens/s with", "ratio")
        decoded = 16 if options.quick else 64
        jobs = [("prompt", work.prompt, 1, 128), ("prompt", work.prompt, 1, 512), ("decoding", work.decode, 1, decoded),
                ("training step", work.train, 1, 128)]
        if not options.quick:
            jobs += [("prompt", work.prompt, 1, 2048), ("training step", work.train, 1, 512)]
        for what, job, batch, tokens in jobs:

            def without():
                compat.uninstall()
                return job(batch, tokens)

            def with_seqloom():
                compat.install()
                return job(batch, tokens)

            both = paired(without, with_seqloom, 1 if what == "training step" else min(options.pairs, 5))
            speeds = (rate(batch * tokens, time) for time in (both.slow, both.fast))
            rows.add(what, batch, tokens, *speeds, f"{both.ratio:.2f}")
    finish(options)


if __name__ == "__main__":
    main()

"""A Hugging Face Mamba on a CPU, before and after two lines.

    python examples/huggingface_mamba.py [--tiny] [--model NAME_OR_FOLDER]

Prints seconds of reading a prompt, of generating and of a training step, without and with seqloom's kernels, and how
far the logits are apart. Without --model: the shape of mamba-130m with random weights; --tiny: a much smaller one.
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM


def seconds(work):
    """How long `work` takes, the second time."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(model, tokens, generated):
    """Logits of a prompt, and the times of everything."""
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))

    def train():
        model.train()(ids, labels=ids).loss.backward()
        model.zero_grad()

    def generate():
        model.generate(ids[:, :8], max_new_tokens=generated, min_new_tokens=generated, do_sample=False, pad_token_id=0)

    model.eval()
    with torch.inference_mode():
        logits = model(ids).logits
        times = {f"prompt of {tokens}": seconds(lambda: model(ids)), f"{generated} new tokens": seconds(generate)}
    times["training step"] = seconds(train)
    return logits, times


def main():
    """Both ways, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a small model and short texts")
    parser.add_argument("--model", help="a Mamba of the hub or a folder, instead of random weights")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model)
    elif options.tiny:
        model = MambaForCausalLM(MambaConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2))
    else:
        model = MambaForCausalLM(MambaConfig(hidden_size=768, num_hidden_layers=24))
    lengths = (32, 4) if options.tiny else (256, 16)
    logits, before = measure(model, *lengths)

    import seqloom.compat

    seqloom.compat.install()

    mine, after = measure(model, *lengths)
    for what in before:
        print(
            f"{what:>16}: {before[what]:8.3f} s, with seqloom {after[what]:8.3f} s, {before[what] / after[what]:.1f}x"
        )
    print(f"logits differ by {(logits - mine).abs().max():.1e}")


if __name__ == "__main__":
    main()

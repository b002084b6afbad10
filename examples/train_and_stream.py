"""A language model trained in PyTorch, saved, and streamed by the seqloom binary.

python examples/train_and_stream.py README.md --out runs/readme --steps 200 --binary build/release/seqloom
"""

import argparse
import pathlib
import shutil
import subprocess

import torch

import seqloom

MODEL = {
    "width": 96,
    "layers": [{"repeat": 2, "mixer": {"kind": "mamba"}}, {"mixer": {"kind": "attention", "heads": 4, "window": 64}}],
}


def train(decoder: seqloom.nn.Decoder, text: torch.Tensor, steps: int, context: int = 128) -> float:
    """Predict the next byte of random pieces of the text; return the last loss in bits a byte."""
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3)
    for step in range(steps):
        first = torch.randint(len(text) - context, (8,))
        rows = torch.stack([text[at : at + context + 1] for at in first.tolist()])
        hidden = decoder.hidden(rows[:, :-1]).flatten(0, 1)
        loss = torch.ops.seqloom.linear_cross_entropy(hidden, decoder.output_weight, rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits = loss.item() / torch.log(torch.tensor(2.0)).item()
        if step % 20 == 0 or step + 1 == steps:
            print(f"step {step:4}  {bits:.3f} bits a byte", flush=True)
    return bits


def main() -> str:
    """Train, save, and return what the binary says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pytorch"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt", default="The ")
    parser.add_argument("--binary", default=shutil.which("seqloom") or "build/release/seqloom")
    options = parser.parse_args()
    torch.manual_seed(0)
    decoder = seqloom.nn.Decoder(MODEL)
    train(decoder, torch.frombuffer(bytearray(options.text.read_bytes()), dtype=torch.uint8).long(), options.steps)
    decoder.training_step = options.steps
    seqloom.save_checkpoint(options.out, decoder)
    command = [options.binary, "generate", options.out, "--prompt", options.prompt, "--tokens", options.tokens]
    command += ["--temperature", "0.7", "--seed", "1"]
    return subprocess.run([str(word) for word in command], check=True, text=True, stdout=subprocess.PIPE).stdout


if __name__ == "__main__":
    print(main())

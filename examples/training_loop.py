"""A seqloom mixer inside a PyTorch training loop: remember the first tokens of a sequence and say them at its end.

python examples/training_loop.py --mixer gla --steps 300
"""

import argparse

import torch
from torch import nn

import seqloom


class Copier(nn.Module):
    """Embedding, two mixers with residual connections, logits: plain PyTorch around seqloom's layers."""

    def __init__(self, kind: str, tokens: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mixers = nn.ModuleList(seqloom.nn.Mixer(kind, width) for _ in range(2))
        self.head = nn.Linear(width, tokens)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return logits [B, T, tokens] of ids [B, T]."""
        x = self.embedding(ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x)


def batch(rows: int, tokens: int, length: int) -> torch.Tensor:
    """Make rows [length random tokens, a mark, the same tokens]; the mark is token 0."""
    words = torch.randint(1, tokens, (rows, length))
    return torch.cat([words, torch.zeros(rows, 1, dtype=torch.int64), words], 1)


def main() -> float:
    """Train and return the part of tokens that are said right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixer", default="gla", help="any name of `seqloom mixers`")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--length", type=int, default=6)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Copier(options.mixer, options.tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(options.steps):
        ids = batch(64, options.tokens, options.length)
        logits = model(ids[:, :-1])[:, options.length :]
        targets = ids[:, options.length + 1 :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = (logits.argmax(-1) == targets).float().mean().item()
        if step % 50 == 0 or step + 1 == options.steps:
            print(f"step {step:4}  loss {loss.item():.3f}  right {right:.0%}", flush=True)
    return right


if __name__ == "__main__":
    main()

"""The shapes of gpt.toml and mamba.toml in PyTorch, mamba.py and Hugging Face transformers, with random weights."""
import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY = 256


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, 2))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Stack(nn.Module):
    """ids [B, T] -> logits [B, T, V]: embedding, layers, norm, the embedding again."""

    def __init__(self, width, layers, norm, positions=0):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, width)) if positions else None
        self.layers, self.norm = layers, norm
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, ids):
        x = self.embedding(ids)
        x = x if self.positions is None else x + self.positions[: ids.size(1)]
        return F.linear(self.norm(self.layers(x)), self.embedding.weight)


def gpt(width=384, layers=6):
    blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(layers)))
    return Stack(width, blocks, nn.LayerNorm(width), positions=1024)


def mambapy_mamba(mamba, width=384, layers=10):
    """`mamba` is the module mambapy.mamba."""
    return Stack(width, mamba.Mamba(mamba.MambaConfig(width, layers)), nn.RMSNorm(width))


def transformers_mamba(transformers, width=384, layers=10):
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, state_size=16)
    return transformers.MambaForCausalLM(config)


def transformers_gpt(transformers, width=384, layers=6):
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64,
                                     n_positions=1024, bos_token_id=None, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config)

"""A BERT-shaped encoder on rows of different lengths: packed through seqloom's op, padded in PyTorch and onnxruntime.

    python benchmarks/peers/encoder.py build/release/libseqloom.so [--quick] [--threads N] [--json FILE]

BERT-base's layers with random weights on embedded tokens. "torch packed" is the packed forward pass with torch's own
attention, row by row: what is left to gain when only the padding is gone.
"""
import tempfile
import warnings
from functools import partial

import torch
import torch.nn.functional as F
from common import begin, finish, paired, peer, seconds, table
from torch import nn

WIDTH, HEADS = 768, 12


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, attention):
        """x [..., D]; attention(q, k, v [..., D]) -> [..., D]."""
        x = self.norm1(x + self.out(attention(*self.qkv(x).chunk(3, -1))))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """x [B, T, D], bias [B, 1, 1, T], 0 or very low for padding -> [B, T, D]."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x, bias):
        def attention(*qkv):
            q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in qkv)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)

        for layer in self.layers:
            x = layer(x, attention)
        return x


def packed(encoder, attention, x):
    """x [N, D], rows end to end."""
    for layer in encoder.layers:
        x = layer(x, attention)
    return x


def fused_rows(offsets, q, k, v):
    q, k, v = (t.unflatten(-1, (HEADS, -1)) for t in (q, k, v))
    return torch.ops.seqloom.varlen_attention(q, k, v, offsets, offsets)[0].flatten(1)


def torch_rows(lengths, q, k, v):
    rows = zip(*(t.unflatten(-1, (HEADS, -1)).transpose(0, 1).split(lengths, 1) for t in (q, k, v)))
    return torch.cat([F.scaled_dot_product_attention(*(t.unsqueeze(0) for t in row))[0] for row in rows], 1).transpose(
        0, 1).flatten(1)


def onnx_session(onnxruntime, encoder, x, bias, threads):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that needs no further package
        torch.onnx.export(encoder, (x, bias), f"{folder}/encoder.onnx", input_names=["x", "bias"], dynamo=False)
        return onnxruntime.InferenceSession(f"{folder}/encoder.onnx", settings, providers=["CPUExecutionProvider"])


def peers_of(options, encoder, lengths):
    """Name -> a forward pass of rows [B, T, D] that gives the real tokens [N, D]; and seqloom's."""
    keep = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    bias = torch.zeros(keep.shape).masked_fill(~keep, torch.finfo(torch.float32).min)[:, None, None]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    compiled = torch.compile(encoder, dynamic=False)
    forms = {"torch eager padded": lambda x: encoder(x, bias)[keep],
             "torch.compile padded": lambda x: compiled(x, bias)[keep],
             "torch packed": lambda x: packed(encoder, partial(torch_rows, lengths), x[keep])}
    onnxruntime = peer("onnxruntime")
    if onnxruntime and peer("onnx"):
        x = torch.randn(*keep.shape, WIDTH)
        session = onnx_session(onnxruntime, encoder, x, bias, options.threads)
        forms["onnxruntime padded"] = lambda x: torch.from_numpy(
            session.run(None, {"x": x.numpy(), "bias": bias.numpy()})[0])[keep]
    return forms, lambda x: packed(encoder, partial(fused_rows, offsets), x[keep])


@torch.no_grad()
def main():
    options = begin(__doc__)
    layers = 2 if options.quick else 12
    title = f"{layers} layers, D = {WIDTH}, H = {HEADS}, lengths uniform in [T / 5, T], float32, forward"
    rows = table(title, "B", "T", "real tokens", "peer", "peer rows/s", "seqloom rows/s", "ratio")
    encoder = Encoder(layers).eval()
    for batch, longest in ((8, 128), (4, 384)):
        lengths = [longest, *torch.randint(longest // 5, longest + 1, (batch - 1,)).tolist()]
        x = torch.randn(batch, longest, WIDTH)
        torch.compiler.reset()
        forms, ours = peers_of(options, encoder, lengths)
        for name, form in forms.items():
            torch.testing.assert_close(ours(x), form(x), rtol=1e-3, atol=1e-3)
            both = paired(*(partial(seconds, partial(run, x), options.threads) for run in (form, ours)), options.pairs)
            rows.add(batch, longest, f"{sum(lengths) / x.size(1) / batch:.2f}", name, f"{batch / both.slow:.2f}",
                     f"{batch / both.fast:.2f}", f"{both.ratio:.2f}")
    finish(options)


if __name__ == "__main__":
    main()

"""torch.compile(fullgraph=True) of modules as people write them, by Inductor, forward and backward."""

import shutil

import pytest
import torch
from torch import Tensor, nn

import seqloom  # noqa: F401  loads the ops

ops = torch.ops.seqloom
D, H = 16, 2


class MambaBlock(nn.Module):
    """Convolution and selective scan."""

    def __init__(self) -> None:
        super().__init__()
        self.inwards, self.steps, self.maps = nn.Linear(D, 2 * D), nn.Linear(D, D), nn.Linear(D, 8)
        self.conv = nn.Parameter(torch.randn(D, 4) / 2)
        self.log_a = nn.Parameter(torch.zeros(D, 4))
        self.skip, self.norm = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        self.outwards = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.inwards(ops.rms_norm(x, self.norm)).transpose(1, 2).chunk(2, 1)
        u, _ = ops.causal_conv1d(u, self.conv, silu=True)
        tokens = u.transpose(1, 2)
        b, c = self.maps(tokens).transpose(1, 2).chunk(2, 1)
        delta = self.steps(tokens).transpose(1, 2)
        y, _ = ops.selective_scan(u, delta, -self.log_a.exp(), b, c, D=self.skip, z=z, delta_softplus=True)
        return x + self.outwards(y.transpose(1, 2))


class Recurrent(nn.Module):
    """Heads of q, k, v for one of the linear recurrences."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.gates, self.out = nn.Linear(D, 3 * D), nn.Linear(D, H), nn.Linear(D, D)
        self.norm = nn.Parameter(torch.ones(D // H))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, H, D // H)).unbind(2)

    def mixed(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        q = self.heads(x)[0]
        return x + self.out(ops.gated_rms_norm(self.mixed(x), q, self.norm).flatten(2))


class Gla(Recurrent):
    """Gated linear attention."""

    def mixed(self, x: Tensor) -> Tensor:
        return ops.gated_linear_attention(*self.heads(x), log_decay=nn.functional.logsigmoid(self.gates(x)))[0]


class Ssd(Recurrent):
    """Mamba-2's recurrence."""

    def mixed(self, x: Tensor) -> Tensor:
        c, b, v = self.heads(x)
        a = -torch.arange(1.0, H + 1)
        return ops.ssd(v, self.gates(x), a, b[:, :, :1], c[:, :, :1], dt_softplus=True)[0]


class DeltaRule(Recurrent):
    """The gated delta rule."""

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        gate = self.gates(x)
        k = nn.functional.normalize(k, dim=-1)
        return ops.delta_rule(q, k, v, gate.sigmoid(), log_decay=nn.functional.logsigmoid(gate))[0]


class Attention(Recurrent):
    """Rotary, packed attention."""

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        tokens = x.shape[1]
        angle = torch.outer(torch.arange(tokens), 1.0 / 100 ** torch.linspace(0, 1, D // H // 2)).unsqueeze(1)
        q, k = (ops.rotary(t, angle.cos(), angle.sin()).flatten(0, 1) for t in (q, k))
        offsets = torch.arange(x.shape[0] + 1) * tokens
        o, _ = ops.varlen_attention(q, k, v.flatten(0, 1), offsets, offsets, causal=True)
        return o.unflatten(0, (x.shape[0], tokens))


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="Inductor needs a compiler")
@pytest.mark.parametrize("cls", [MambaBlock, Gla, Ssd, DeltaRule, Attention])
def test_a_module_compiles_in_one_graph(cls):
    torch.manual_seed(0)
    torch._dynamo.reset()
    module, x = cls(), torch.randn(2, 9, D, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True)
    leaves = [x, *module.parameters()]
    found, wanted = compiled(x), module(x)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    weight = torch.randn_like(wanted)
    found, wanted = (torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True) for y in (found, wanted))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x.detach()), module(x.detach()), atol=1e-5, rtol=1e-4)

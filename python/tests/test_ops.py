"""What PyTorch asks of an op, for every op of the library and each of its samples."""

import pytest
import torch
from samples import SAMPLES, UPDATES, Sample
from torch import Tensor

from seqloom import _fakes

samples = pytest.mark.parametrize("sample", SAMPLES, ids=str)
updates = pytest.mark.parametrize("update", UPDATES, ids=str)


def one_of_each() -> list[Sample]:
    return list({sample.op: sample for sample in SAMPLES}.values())


def floating(outputs) -> tuple[Tensor, ...]:
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return tuple(x for x in outputs if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad)


def normalised(outputs) -> tuple[Tensor, ...]:
    """Outputs of prefix_softmax_scan that do not depend on which maximum was subtracted."""
    y, m, u, w = outputs
    return y, m + u.log(), w / u.unsqueeze(-1)


def gradients(outputs, sample: Sample) -> dict[str, Tensor]:
    loss = sum((x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in floating(outputs))
    leaves = sample.leaves()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True))


def assert_close(found, wanted, **tolerance) -> None:
    torch.testing.assert_close(found, wanted, equal_nan=True, **tolerance)


def test_every_op_has_samples_and_shapes():
    assert set(_fakes.names()) == {sample.op for sample in [*SAMPLES, *UPDATES]}
    for name in _fakes.names():
        assert callable(getattr(_fakes, "_" + name, None)), f"seqloom/_fakes.py says nothing of {name}"


def smooth(sample: Sample):
    """The op as a function of its leaves whose derivative is what its gradient says."""

    def function(*tensors):
        named = dict(zip(sample.leaves(), tensors, strict=True))
        if sample.op == "newton_schulz_factor":  # the gradient is that of a function of symmetric matrices
            named = {"gram": (named["gram"] + named["gram"].mT) / 2}
        outputs = sample.call(**named)
        if sample.op == "prefix_softmax_scan":
            return normalised(outputs)
        if sample.op == "vector_quantize":  # the gradient of y goes straight through, which is not its derivative
            return outputs[2]
        if sample.op == "segsum":  # -inf above the diagonal
            return outputs.tril()
        return floating(outputs)

    return function


@samples
def test_gradcheck(sample):
    sample = sample.to(torch.float64)
    assert torch.autograd.gradcheck(smooth(sample), tuple(sample.leaves().values()))


@samples
def test_gradgradcheck(sample):
    sample = sample.to(torch.float64)
    assert torch.autograd.gradgradcheck(smooth(sample), tuple(sample.leaves().values()), fast_mode=True)


def test_vector_quantize_hands_gradients_straight_through():
    sample = next(sample for sample in SAMPLES if sample.op == "vector_quantize").to(torch.float64)
    y = sample.call()[0]
    weight = torch.randn_like(y)
    (found,) = torch.autograd.grad((y * weight).sum(), [sample.tensors["x"]])
    assert_close(found, weight)


@samples
@pytest.mark.filterwarnings("ignore")
def test_opcheck(sample):
    sample = sample.to(torch.float32)
    torch.library.opcheck(sample.overload(), (), {**sample.tensors, **sample.others}, atol=1e-5, rtol=1e-4)


@samples
@pytest.mark.filterwarnings("ignore")
def test_opcheck_of_the_gradient(sample):
    """NAME_backward is an op as well: no aliases, and shapes as its fake says."""
    sample = sample.to(torch.float32, gradients=False)
    schema = sample.overload()._schema
    given = {**sample.tensors, **sample.others}
    arguments = [given.get(argument.name, argument.default_value) for argument in schema.arguments]
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    outputs = sample.call()
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    cotangents = [torch.ones_like(x) for x in outputs if isinstance(x, Tensor)]
    wanted = [tensor.is_floating_point() for tensor in tensors]
    op = getattr(torch.ops.seqloom, sample.op + "_backward").default
    torch.library.opcheck(op, (*arguments, cotangents, wanted), test_utils=("test_schema", "test_faketensor"))


@samples
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_in_one_graph(sample, dynamic):
    if sample.op == "pack_padding":
        pytest.skip("how many tokens are real is not known while tracing; see test_packing_compiles")
    sample = sample.to(torch.float32)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(tensors):
        return sample.call(**tensors)

    found, wanted = compiled(sample.tensors), sample.call()
    assert_close(found, wanted)
    if sample.leaves():
        assert_close(gradients(found, sample), gradients(wanted, sample), atol=1e-5, rtol=1e-4)


def test_packing_compiles():
    torch._dynamo.reset()
    x, mask = torch.randn(2, 3, 4, requires_grad=True), torch.tensor([[1, 1, 0], [1, 0, 0]])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def through(x, mask):
        data, _, indices, _ = torch.ops.seqloom.pack_padding(x, mask)
        return torch.ops.seqloom.unpack_padding(data * 2, indices, x.shape[0], x.shape[1])

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        y = through(x, mask)
    assert_close(y, 2 * x * mask.unsqueeze(-1))
    (found,) = torch.autograd.grad(y.sum(), [x])
    assert_close(found, 2.0 * mask.unsqueeze(-1).expand_as(x))


@samples
def test_bfloat16_stays_near_float32(sample):
    if sample.op in ("newton_schulz_factor", "vector_quantize"):
        pytest.skip("float64 inside, and a choice of codes that rounding may change")
    narrow = sample.to(torch.bfloat16, gradients=False)
    found, wanted = narrow.call(), narrow.to(torch.float32, gradients=False).call()
    assert_close(found, wanted, atol=0.1, rtol=0.05, check_dtype=False)
    first = found[0] if isinstance(found, tuple | list) else found
    if sample.op != "linear_cross_entropy":
        assert first.dtype == torch.bfloat16


LOWERED = {"lora": torch.bfloat16, "varlen_attention": torch.bfloat16, "linear_cross_entropy": torch.float32}


@samples
def test_autocast(sample):
    """Products run in bfloat16; all else takes float32 as it comes and keeps it."""
    sample = sample.to(torch.float32)
    wanted = sample.call()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sample.call()
    if sample.op not in LOWERED:
        assert_close(found, wanted)
        return
    first = found[0] if isinstance(found, tuple | list) else found
    assert first.dtype == LOWERED[sample.op]
    assert_close(found, wanted, atol=0.1, rtol=0.05, check_dtype=False)
    for gradient in gradients(found, sample).values():
        assert gradient is None or gradient.dtype == torch.float32


@pytest.mark.parametrize("coded", [True, False], ids=["int8", "bfloat16"])
def test_gradients_of_coded_weights(coded):
    """Through weights in fewer bytes, and into what of them can have one."""
    x, bias = torch.randn(3, 6, requires_grad=True), torch.randn(4, requires_grad=True)
    if coded:
        weight, scale = torch.randint(-127, 128, (4, 6), dtype=torch.int8), torch.rand(4, 2, requires_grad=True)
        dense, leaves = (weight.float().unflatten(1, (2, 3)) * scale.unsqueeze(2)).flatten(1), [x, scale, bias]
    else:
        weight, scale = torch.randn(4, 6).bfloat16().requires_grad_(), None
        dense, leaves = weight.float(), [x, weight, bias]
    y, wanted = torch.ops.seqloom.linear(x, weight, scale, bias), torch.nn.functional.linear(x, dense, bias)
    assert_close(y, wanted)
    upstream = torch.randn_like(y)
    assert_close(torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(wanted, leaves, upstream))


@updates
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_opcheck_of_updates(update, dtype):
    given = {**update.fresh(dtype), **update.others}
    torch.library.opcheck(update.overload(), (), given, test_utils=("test_schema", "test_faketensor"))


@updates
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_updates_compile_in_one_graph(update, dynamic):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def compiled(tensors):
        return update.overload()(**tensors, **update.others)

    found, wanted, before = (update.fresh(torch.float32) for _ in range(3))
    assert_close(compiled(found), update.overload()(**wanted, **update.others))
    assert_close(found, wanted)
    for name in update.changed():
        assert not torch.equal(flat(found[name]), flat(before[name])), f"{name} did not move on"


def flat(tensors: Tensor | list[Tensor]) -> Tensor:
    return tensors if isinstance(tensors, Tensor) else torch.stack(tensors)


def test_messages_reach_python():
    with pytest.raises(RuntimeError, match=r"weight is \[3\], expected the trailing dimensions of x"):
        torch.ops.seqloom.rms_norm(torch.ones(2, 4), torch.ones(3))

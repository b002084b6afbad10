"""What the tests of seqloom.compat share."""

import torch


def leaves(*tensors):
    """Copies that take gradients; None stays None."""
    return [t if t is None else t.detach().clone().requires_grad_() for t in tensors]


def outputs_and_gradients(function, tensors, **options):
    """Outputs of function(*tensors) and the gradients of a weighted sum of them."""
    inputs = leaves(*tensors)
    outputs = function(*inputs, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    flat = []
    for output in outputs:
        flat += output if isinstance(output, tuple) else [output]
    flat = [o for o in flat if o is not None]
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (o.real if o.is_complex() else o).float().mul(torch.randn(o.shape, generator=generator)).sum() for o in flat
    )
    asked = [t for t in inputs if t is not None]
    gradients = torch.autograd.grad(loss, asked, allow_unused=True)
    return [o.detach() for o in flat], list(gradients)


def assert_near(got, want, tolerance, what=""):
    """Equal types and shapes, and the largest difference within `tolerance` of the largest entry."""
    assert got.shape == want.shape, (what, got.shape, want.shape)
    assert got.dtype == want.dtype, (what, got.dtype, want.dtype)
    got, want = (t.cdouble() if t.is_complex() else t.double() for t in (got, want))
    scale = max(want.abs().max().item(), 1e-3)
    error = (got - want).abs().max().item()
    assert error <= tolerance * scale, f"{what}: off by {error:.3g}, largest {scale:.3g}"


def assert_agree(function, reference, tensors, tolerance, gradient_tolerance=None, **options):
    """Outputs and gradients of a function and of its reference are near, and of the same types and shapes."""
    got, got_gradients = outputs_and_gradients(function, tensors, **options)
    want, want_gradients = outputs_and_gradients(reference, tensors, **options)
    assert len(got) == len(want)
    for i, pair in enumerate(zip(got, want, strict=True)):
        assert_near(*pair, tolerance, f"output {i}")
    for i, (mine, theirs) in enumerate(zip(got_gradients, want_gradients, strict=True)):
        assert (mine is None) == (theirs is None), f"gradient {i}"
        if mine is not None:
            assert_near(mine, theirs, gradient_tolerance or tolerance, f"gradient {i}")

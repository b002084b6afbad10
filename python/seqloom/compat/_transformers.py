"""Hugging Face transformers: the functions its mixers call go to seqloom for tensors on the CPU.

Its models hold each kernel as a function of their module, made by ``use_kernel_func_from_hub_with_fallback(name,
package)`` from a plain PyTorch one: the package's function if it can be imported, else the plain one. Those functions
are replaced in models that are loaded, and the decorator for models that are loaded later. A transformers from before
that decorator asks for CUDA inside its mixers and keeps its plain way; `install` warns.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

import torch

from seqloom.compat import causal_conv1d
from seqloom.compat.fla.ops import gated_delta_rule
from seqloom.compat.mamba_ssm.ops import selective_scan_interface
from seqloom.compat.mamba_ssm.ops.triton import selective_state_update, ssd_combined

HUB = "transformers.integrations.hub_kernels"
DECORATOR = "use_kernel_func_from_hub_with_fallback"

# The kernels by their names in the original packages.
DROP_INS: dict[str, Callable] = {
    "causal_conv1d_fn": causal_conv1d.causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d.causal_conv1d_update,
    "selective_scan_fn": selective_scan_interface.selective_scan_fn,
    "selective_state_update": selective_state_update.selective_state_update,
    "mamba_chunk_scan_combined": ssd_combined.mamba_chunk_scan_combined,
    "chunk_gated_delta_rule": gated_delta_rule.chunk_gated_delta_rule,
    "fused_recurrent_gated_delta_rule": gated_delta_rule.fused_recurrent_gated_delta_rule,
}
# These run a whole block in training, and leave out the mask of padding behind the convolution. On a CPU the models go
# the way they go without them, through the kernels above: the same result, as fast.
WHOLE_BLOCKS = ("mamba_inner_fn", "mamba_split_conv1d_scan_combined")

_enabled = False


def install() -> None:
    """Replace the functions of all models, loaded now or later."""
    global _enabled
    _enabled = True
    if HUB in sys.modules:
        patch_hub(sys.modules[HUB])
    for module in _models():
        _patch_model(module)


def uninstall() -> None:
    """Take `install` back."""
    global _enabled
    _enabled = False
    if HUB in sys.modules:
        for module in _holders():
            _restore(module, DECORATOR)
    for module in _models():
        for name in list(vars(module)):
            _restore(module, name)


def _restore(holder: ModuleType, name: str) -> None:
    """Undo the replacement of an attribute, if it was replaced: a replacement knows how what it stands for is made."""
    restored = getattr(vars(holder).get(name), "seqloom_original", None)
    if restored is not None:
        setattr(holder, name, restored())


def _models() -> list[ModuleType]:
    """List loaded modules of models, of transformers and of a checkpoint's own code."""
    names = ("transformers.models.", "transformers_modules.")
    return [m for name, m in list(sys.modules.items()) if name.startswith(names) and "modeling" in name and m]


def _holders() -> list[ModuleType]:
    """Modules that have the decorator by name."""
    return [
        m for name, m in list(sys.modules.items()) if name.startswith("transformers") and m and DECORATOR in vars(m)
    ]


def patch_hub(hub: ModuleType) -> None:
    """Replace the decorator in transformers' module of it, and wherever it is known by then."""
    original = getattr(hub, DECORATOR, None)
    if original is None:
        warnings.warn("this transformers is too old: its mixers do not call seqloom on a CPU", stacklevel=2)
        return
    if hasattr(original, "seqloom_original"):
        return

    @functools.wraps(original)
    def decorator(func_name: str, package: str, internal_path: str | None = None):
        def decorate(plain: Callable) -> Callable:
            def make() -> Callable:  # once more when seqloom's modules no longer stand for the package
                return original(func_name, package, internal_path)(plain)

            return _dispatched(func_name, make(), plain, make)

        return decorate

    decorator.seqloom_original = lambda: original
    setattr(hub, DECORATOR, decorator)
    for module in _holders():
        setattr(module, DECORATOR, decorator)


def _patch_model(module: ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if hasattr(value, "seqloom_original"):
            continue
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            kernel = _kernel_of(value)
            if kernel is not None:
                setattr(module, name, _dispatched(kernel, value, value.__wrapped__, lambda value=value: value))


def _kernel_of(function: Callable) -> str | None:
    """Find the name that a function of a model was decorated with."""
    if not hasattr(function, "__wrapped__"):
        return None
    name = inspect.getclosurevars(function).nonlocals.get("func_name")
    return name if name in DROP_INS or name in WHOLE_BLOCKS else None


def _dispatched(kernel: str, theirs: Callable, plain: Callable, restored: Callable[[], Callable]) -> Callable:
    """Make a model's function that goes to seqloom on the CPU; `restored` makes the one to put back in its place."""
    if kernel not in DROP_INS and kernel not in WHOLE_BLOCKS:
        return theirs
    drop_in = DROP_INS.get(kernel, plain)
    parameters = frozenset(inspect.signature(drop_in).parameters)

    @functools.wraps(plain)
    def dispatched(*args, **kwargs):
        if not _enabled or args[0].device.type != "cpu" or torch.compiler.is_exporting():
            return theirs(*args, **kwargs)
        if kwargs.get("activation") not in (None, "silu", "swish"):
            return plain(*args, **kwargs)
        return drop_in(*args, **{name: value for name, value in kwargs.items() if name in parameters})

    dispatched.seqloom_original = restored
    return dispatched

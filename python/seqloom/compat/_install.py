"""install() and uninstall(): the drop-ins under the originals' import paths.

A finder at the head of ``sys.meta_path`` answers imports of these packages:

- A package that is not installed, or cannot be imported without Triton or its CUDA extension, is seqloom's whole.
- Of mamba_ssm and causal_conv1d, where they are installed, seqloom takes the modules that hold kernels, those of
  `OVERLAID`; the rest is the package's own and runs on them.
- Of fla, whose families import each other's kernels, and of what a package has loaded by then, the modules stay; their
  functions go to seqloom for tensors on the CPU, and to the package itself for others.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType

import torch

from seqloom.compat import _transformers
from seqloom.compat._loader import loader_then

PREFIX = "seqloom.compat."
FAMILIES = ("delta_rule", "gated_delta_rule", "gla", "linear_attn", "retention", "simple_gla")
TRITON = (
    "k_activations",
    "layer_norm",
    "layernorm_gated",
    "mamba3",
    "selective_state_update",
    "softplus",
    "ssd_chunk_scan",
    "ssd_chunk_state",
    "ssd_combined",
    "ssd_state_passing",
)
# The modules of each package that hold kernels.
OVERLAID = {
    "causal_conv1d": (
        "causal_conv1d",
        "causal_conv1d.causal_conv1d_interface",
        "causal_conv1d.causal_conv1d_varlen",
        "causal_conv1d.cpp_functions",
    ),
    "mamba_ssm": (
        "mamba_ssm.ops.selective_scan_interface",
        *(f"mamba_ssm.ops.triton.{name}" for name in TRITON),
    ),
    "fla": tuple(f"fla.ops.{name}" for name in FAMILIES),
}
# Modules of the originals that are one here, and their parts.
FLAT = OVERLAID["fla"]
PARTS = ("chunk", "fused_chunk", "fused_recurrent", "gate", "naive", "parallel")
# What a package needs for its own modules to be worth having.
NEEDS = {"causal_conv1d": "causal_conv1d_cuda", "mamba_ssm": "einops", "fla": "triton"}


def ours(name: str) -> ModuleType | None:
    """Seqloom's module for an import path, None if there is none."""
    flat = next((module for module in FLAT if name.startswith(module + ".")), None)
    if flat is not None:
        return importlib.import_module(PREFIX + flat) if name[len(flat) + 1 :] in PARTS else None
    try:
        return importlib.import_module(PREFIX + name)
    except ModuleNotFoundError as error:
        if error.name == PREFIX + name:
            return None
        raise


class Alias(importlib.abc.Loader):
    """Loads seqloom's module under another name."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the module itself."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to do but to give the module its own spec back."""
        module.__spec__ = self.spec


class Finder(importlib.abc.MetaPathFinder):
    """Answers imports of the packages with seqloom's modules."""

    def __init__(self) -> None:
        self.real: dict[str, bool] = {}  # whether a package's own modules are used beside seqloom's

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the spec of seqloom's module for `name`, None to leave it to the other finders."""
        if name == _transformers.HUB:
            return loader_then(name, path, _transformers.patch_hub)
        package = name.partition(".")[0]
        if package not in OVERLAID:
            return None
        if self.uses_real(package):
            if not _covers(OVERLAID[package], name):
                return None
            if package == "fla":
                return loader_then(name, path, _dispatch_module)
        module = ours(name)
        if module is None:
            return None
        return importlib.machinery.ModuleSpec(name, Alias(module), is_package=hasattr(module, "__path__"))

    def uses_real(self, package: str) -> bool:
        """Whether the package is installed with what its own modules need."""
        if package not in self.real:
            found = all(importlib.machinery.PathFinder.find_spec(name) for name in (package, NEEDS[package]))
            self.real[package] = found
        return self.real[package]


def _covers(modules: tuple[str, ...], name: str) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


_finder: Finder | None = None
_dispatched: list[tuple[ModuleType, str, object]] = []  # (module, name, what stood there)


def install() -> None:
    """Put the drop-ins under the import paths of mamba_ssm, causal_conv1d and fla, and into Hugging Face transformers.

    May be called before or after those packages are imported, and again; `uninstall` takes it back.
    """
    global _finder
    if _finder is not None:
        return
    _finder = Finder()
    sys.meta_path.insert(0, _finder)
    _dispatch_loaded()
    _transformers.install()


def uninstall() -> None:
    """Take `install` back. Names that other modules imported from the drop-ins meanwhile stay what they are there."""
    global _finder
    if _finder is None:
        return
    sys.meta_path.remove(_finder)
    _finder = None
    for module, name, original in reversed(_dispatched):
        setattr(module, name, original)
    _dispatched.clear()
    aliases = {name: m for name, m in sys.modules.items() if name.partition(".")[0] in OVERLAID and _is_ours(m)}
    for name, module in aliases.items():
        del sys.modules[name]
        parent, _, child = name.rpartition(".")
        holder = sys.modules.get(parent)
        if holder is not None and not _is_ours(holder) and vars(holder).get(child) is module:
            delattr(holder, child)
    _transformers.uninstall()


def _is_ours(module: ModuleType | None) -> bool:
    return getattr(module, "__name__", "").startswith(PREFIX)


def installed() -> bool:
    """Whether the drop-ins are in place."""
    return _finder is not None


def _dispatch_loaded() -> None:
    """Let functions of packages that are loaded already go to seqloom for tensors on the CPU, wherever they stand."""
    replacements: dict[int, Callable] = {}
    for name, module in list(sys.modules.items()):
        package = name.partition(".")[0]
        if package in OVERLAID and isinstance(module, ModuleType) and _covers(OVERLAID[package], name):
            replacements.update(_replacements(module))
    for module in list(sys.modules.values()) if replacements else []:
        if not isinstance(module, ModuleType) or _is_ours(module):
            continue
        for key, value in list(vars(module).items()):
            if id(value) in replacements and isinstance(value, FunctionType):
                _dispatched.append((module, key, value))
                setattr(module, key, replacements[id(value)])


def _dispatch_module(module: ModuleType) -> None:
    """Do the same for the functions of one module that has just been loaded."""
    replacements = _replacements(module)
    for key, value in list(vars(module).items()):
        if id(value) in replacements:
            _dispatched.append((module, key, value))
            setattr(module, key, replacements[id(value)])


def _replacements(module: ModuleType) -> dict[int, Callable]:
    """Make what goes by device for each function of a module that seqloom has too, by the function's id."""
    mine = ours(module.__name__)
    found = {}
    for key, theirs in vars(module).items() if mine is not None else ():
        drop_in = vars(mine).get(key)
        own = getattr(theirs, "__module__", "") or ""
        if isinstance(theirs, FunctionType) and own.startswith(module.__name__) and isinstance(drop_in, FunctionType):
            found[id(theirs)] = _by_device(theirs, drop_in)
    return found


def _by_device(theirs: Callable, drop_in: Callable) -> Callable:
    @functools.wraps(theirs)
    def dispatched(*args, **kwargs):
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), None)
        on_cpu = installed() and first is not None and first.device.type == "cpu"
        return (drop_in if on_cpu else theirs)(*args, **kwargs)

    return dispatched

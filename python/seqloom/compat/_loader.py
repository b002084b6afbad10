"""Something to do with a module as soon as it is loaded."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Hook = Callable[[ModuleType], None]


def loader_then(name: str, path: Sequence[str] | None, hook: Hook) -> importlib.machinery.ModuleSpec | None:
    """Find the spec of a module as Python does, None if there is none; `hook` gets the module when it is loaded."""
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is not None and spec.loader is not None:
        spec.loader = _Then(spec.loader, hook)
    return spec


class _Then(importlib.abc.Loader):
    """A loader with something behind it; all else it leaves to the loader."""

    def __init__(self, loader: importlib.abc.Loader, hook: Hook) -> None:
        self.loader, self.hook = loader, hook

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.hook(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

"""Modules whose parameters are those of a C++ module."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Part(nn.Module):
    """A level of the names of a C++ module's parameters."""


class SharedModule(nn.Module):
    """A torch module in front of a C++ module, with one set of parameters between them.

    The parameters and buffers are the very tensors that C++ computes with, under the names that seqloom's checkpoints
    use. Optimisers, ``.grad``, ``state_dict``, ``to``, ``deepcopy`` and pickling work as with any module. A parameter
    changes in place; another tensor put in its place is not seen by C++, and `forward` says so.
    """

    def __init__(self, handle: torch.ScriptObject | None = None) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_adopt_loaded)
        self._attach(self._make() if handle is None else handle)

    def _make(self) -> torch.ScriptObject:
        """Make a fresh C++ module."""
        raise NotImplementedError

    def _attach(self, handle: torch.ScriptObject) -> None:
        self._handle = handle
        self._own: dict[str, Tensor] = {}
        for name, tensor in handle.parameters().items():
            tensor.__class__ = nn.Parameter  # the same tensor, which autograd and optimisers then take for one
            self._own[name] = tensor
        self._own.update(handle.buffers())
        for name, tensor in self._own.items():
            self._place(name, tensor)

    def _part(self, name: str) -> tuple[nn.Module, str]:
        *path, leaf = name.split(".")
        part: nn.Module = self
        for word in path:
            if word not in part._modules:
                part.add_module(word, Part())
            part = part._modules[word]
        return part, leaf

    def _place(self, name: str, tensor: Tensor) -> None:
        part, leaf = self._part(name)
        if not isinstance(tensor, nn.Parameter):
            part.register_buffer(leaf, tensor)
        elif leaf in part._parameters:
            part._parameters[leaf] = tensor
        else:
            part.register_parameter(leaf, tensor)

    def _present(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every name with C++'s tensor and the one that stands in this module."""
        for name, own in self._own.items():
            part, leaf = self._part(name)
            yield name, own, part._parameters[leaf] if leaf in part._parameters else part._buffers[leaf]

    def _adopt(self) -> None:
        """Give C++'s tensors the contents of those that replaced them, and their place back."""
        for name, own, present in self._present():
            if present is not own:
                own.data = present.data
                own.requires_grad_(present.requires_grad)
                self._place(name, own)

    def _ready(self) -> torch.ScriptObject:
        for name, own, present in self._present():
            if present is not own:
                raise RuntimeError(
                    f"parameter {name} was replaced by another tensor, which the C++ module does not see; change it in "
                    "place (copy_, .data) or with load_state_dict"
                )
        return self._handle

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        self._adopt()
        return self

    def train(self, mode: bool = True):
        """Set training mode, in C++ as well."""
        super().train(mode)
        self._handle.train(mode)
        return self

    def after_step(self) -> None:
        """Call after each optimiser step: what is learned without gradients, such as LongVQ's codebook, moves here."""
        self._ready().after_step()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_handle", "_own")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        copied = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        with torch.random.fork_rng(devices=[]):  # a copy draws no random numbers
            self._attach(self._make())
        for name, own in self._own.items():
            own.data = copied[name].data
            own.requires_grad_(copied[name].requires_grad)
        self._handle.train(self.training)


def _adopt_loaded(module: SharedModule, incompatible_keys) -> None:
    module._adopt()

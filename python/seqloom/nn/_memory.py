"""What a mixer remembers, as a Python object."""

import os

import torch
from torch import Tensor


class Memory:
    """What a mixer or a decoder keeps of the tokens that it has read: tensors by name, with the batch first.

    Made by ``empty_memory`` and changed in place by ``step``. A copy is made by `clone`, and goes on by itself.
    """

    def __init__(self, handle: torch.ScriptObject) -> None:
        self._handle = handle

    @property
    def tokens(self) -> int:
        """Tokens read so far, padding left out; of the row that has read most."""
        return self._handle.tokens()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by dotted name, ``layers.0.S``. They are the memory's own: what is written to them is read."""
        return self._handle.tensors()

    @property
    def bytes(self) -> int:
        """Bytes that the tensors occupy."""
        return self._handle.bytes()

    def clone(self) -> "Memory":
        """Fork the stream: an independent copy without gradients."""
        return Memory(self._handle.clone())

    def select_rows(self, index: Tensor | list[int]) -> "Memory":
        """Take the memory of these rows of the batch; a row may be taken more than once (beams).

        Parameters
        ----------
        index : Tensor or list of int
            Rows [R].
        """
        return Memory(self._handle.select_rows(torch.as_tensor(index, dtype=torch.int64)))

    def save(self, path: str | os.PathLike) -> None:
        """Write the memory into a safetensors file."""
        self._handle.save(os.fspath(path))

    def load(self, path: str | os.PathLike) -> "Memory":
        """Read a saved memory that has the structure of this one, as ``model.empty_memory(batch).load(path)``.

        Raises
        ------
        RuntimeError
            When the file is not a memory of this structure; says which part differs.
        """
        return Memory(self._handle.load(os.fspath(path)))

    def __copy__(self) -> "Memory":
        return self.clone()

    def __deepcopy__(self, memo: dict) -> "Memory":
        return self.clone()

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(tensor.shape)}" for name, tensor in self.tensors.items())
        return f"Memory(tokens={self.tokens}, {shapes})"

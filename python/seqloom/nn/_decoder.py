"""Whole language models, and the checkpoints that the seqloom binary reads and writes."""

import json
import os
import pathlib

import torch
from torch import Tensor

from seqloom.nn._memory import Memory
from seqloom.nn._shared import SharedModule

_BYTES = {"task": {"kind": "language", "tokenizer": "bytes"}}


class Decoder(SharedModule):
    """A language model: embedding, a stack of residual blocks, a final norm, logits.

    Parameters
    ----------
    table : dict
        The ``[model]`` table of a recipe, ``{"width": 256, "layers": [{"repeat": 4, "mixer": {"kind": "mamba"}}]}``
        (``tomllib.load`` of a recipe gives it under ``"model"``).
    vocabulary : int
        Token ids are 0 .. vocabulary - 1. The default is that of bytes.

    Raises
    ------
    ValueError
        For a key or value that a recipe may not have; the message says where and what was expected.
    """

    def __init__(self, table: dict, vocabulary: int = 256, *, _opened: torch.ScriptObject | None = None) -> None:
        self.table, self.vocabulary = table, vocabulary
        self.losses: list[Tensor] = []
        self.recipe: dict = {**_BYTES, "model": table}
        self.training_step = 0
        self.attachments: dict[str, str] = {}
        super().__init__(_opened)

    def _make(self) -> torch.ScriptObject:
        try:
            return torch.classes.seqloom.Decoder(self.vocabulary, json.dumps(self.table))
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    @torch.compiler.disable
    def hidden(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the vectors [B, T, D] that logits are made of.

        With `output_weight` they are what ``torch.ops.seqloom.linear_cross_entropy`` takes, which never holds all
        logits. Auxiliary losses of the layers stand in ``self.losses`` afterwards.

        Parameters
        ----------
        ids : Tensor
            Token ids, int64 [B, T].
        lengths : Tensor, optional
            Int64 [B]: the real tokens of each row; what follows is padding.
        """
        hidden, self.losses = self._ready().hidden(ids, lengths)
        return hidden

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the logits [B, T, vocabulary] of the token after each, float32; arguments as of `hidden`."""
        return self.logits(self.hidden(ids, lengths))

    @torch.compiler.disable
    def logits(self, hidden: Tensor) -> Tensor:
        """Turn hidden vectors [..., D] into logits [..., vocabulary], float32."""
        return self._ready().logits(hidden)

    @property
    def output_weight(self) -> Tensor:
        """The matrix [vocabulary, D] of the logits; the embedding where the two are tied."""
        return self._own.get("head.weight", self._own["embedding.weight"])

    @torch.compiler.disable
    def step(self, ids: Tensor, memory: Memory) -> Tensor:
        """Read the next token [B], or the next T >= 1 tokens [B, T], and return the logits after each.

        Parameters
        ----------
        ids : Tensor
            Token ids, int64.
        memory : Memory
            Of `empty_memory` and the tokens before; changed in place.

        Returns
        -------
        Tensor
            Logits [B, vocabulary] or [B, T, vocabulary].
        """
        hidden = self._ready().extend(ids.unsqueeze(1) if ids.dim() == 1 else ids, memory._handle)
        logits = self._handle.logits(hidden)
        return logits.squeeze(1) if ids.dim() == 1 else logits

    def empty_memory(self, batch: int) -> Memory:
        """Make the memory of `batch` streams before their first token."""
        return Memory(self._ready().empty_memory(batch))

    def extra_repr(self) -> str:
        """Show vocabulary and width."""
        return f"vocabulary={self.vocabulary}, width={self.table.get('width', 256)}"


def load_checkpoint(path: str | os.PathLike) -> Decoder:
    """Load a language model that the seqloom binary trained, or `save_checkpoint` wrote.

    Parameters
    ----------
    path : str or PathLike
        A run's folder or its checkpoint file.

    Returns
    -------
    Decoder
        In evaluation mode, with the checkpoint's ``recipe``, ``training_step`` and ``attachments`` (its tokenizer).

    Raises
    ------
    RuntimeError
        When the file is missing or no checkpoint of a language model, or its weights do not fit its recipe.
    """
    opened = torch.classes.seqloom.Decoder.open(os.fspath(path))
    recipe = json.loads(opened.recipe())
    decoder = Decoder(recipe["model"], opened.vocabulary(), _opened=opened)
    decoder.recipe, decoder.training_step, decoder.attachments = recipe, opened.training_step(), opened.attachments()
    return decoder.eval()


def save_checkpoint(path: str | os.PathLike, decoder: Decoder, tokenizer: str | os.PathLike | None = None) -> None:
    """Write a decoder as a checkpoint that the seqloom binary generates from, evaluates and serves.

    Parameters
    ----------
    path : str or PathLike
        A folder, made where it is missing, or a file that ends in ``.safetensors``.
    decoder : Decoder
        ``decoder.recipe`` and ``decoder.training_step`` are written with the weights.
    tokenizer : str or PathLike, optional
        A Hugging Face tokenizer.json; without, tokens are bytes, or what the decoder was loaded with.

    Raises
    ------
    ValueError
        When tokens are bytes and the vocabulary is not 256.
    """
    attachments = dict(decoder.attachments)
    if tokenizer is not None:
        attachments["tokenizer.json"] = pathlib.Path(tokenizer).read_text(encoding="utf-8")
    if "tokenizer.json" not in attachments and decoder.vocabulary != 256:
        raise ValueError(f"the vocabulary is {decoder.vocabulary}, and that of bytes 256: name a tokenizer.json")
    file = pathlib.Path(path)
    if file.suffix != ".safetensors":
        file.mkdir(parents=True, exist_ok=True)
        file = file / "checkpoint.safetensors"
    decoder._ready().save(str(file), json.dumps(decoder.recipe), decoder.training_step, attachments)

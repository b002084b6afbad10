"""Every mixer of seqloom's registry as a torch module."""

import inspect
import json

import torch
from torch import Tensor

from seqloom.nn._memory import Memory
from seqloom.nn._shared import SharedModule

#: What the registry says of each mixer: {"mamba": {"about": ..., "options": [...], "trials": [...]}}
REGISTRY: dict[str, dict] = json.loads(torch.classes.seqloom.Mixer.registry())

_EMPTY: dict[str, Tensor] = {}


class Mixer(SharedModule):
    """Mixes tokens along time, x [B, T, D] -> y [B, T, D].

    Parameters
    ----------
    kind : str
        The mixer's name in seqloom's recipes: ``mamba``, ``gla``, ``attention``, ...
    d_model : int
        Model width D.
    **options
        As in a recipe's ``mixer = { kind = ..., ... }``; see the class of that mixer.

    Raises
    ------
    ValueError
        For an unknown mixer or option, or a value out of range; the message says what was expected.
    """

    def __init__(self, kind: str, d_model: int, /, **options) -> None:
        self.kind, self.d_model, self.options = kind, d_model, options
        self.losses: list[Tensor] = []
        super().__init__()

    def _make(self) -> torch.ScriptObject:
        table = json.dumps({"kind": self.kind, **self.options})
        try:
            return torch.classes.seqloom.Mixer(self.d_model, table)
        except RuntimeError as error:
            raise ValueError(str(error)) from None

    @property
    def causal(self) -> bool:
        """Whether no output depends on a later token; only then are there `step` and `empty_memory`."""
        return self._handle.causal()

    @property
    def takes(self) -> list[str]:
        """Names of the values of an earlier layer that the mixer cannot do without (RWKV-7 above layer 0)."""
        return self._handle.takes()

    @torch.compiler.disable
    def forward(self, x: Tensor, lengths: Tensor | None = None, values: dict[str, Tensor] | None = None) -> Tensor:
        """Mix a batch of sequences.

        Auxiliary losses, where the mixer has some (LongVQ's commitment), stand in ``self.losses`` afterwards.

        Parameters
        ----------
        x : Tensor
            Tokens [B, T, D].
        lengths : Tensor, optional
            Int64 [B]: the first ``lengths[b]`` tokens of row b are real, what follows is padding, whose outputs mean
            nothing.
        values : dict of Tensor, optional
            What layers hand to the layers after them, such as RWKV-7's ``v_first``: one dict for the whole stack,
            read and written.

        Returns
        -------
        Tensor
            y [B, T, D].
        """
        y, handed_on, self.losses = self._ready().forward(x, lengths, _EMPTY if values is None else values)
        if values is not None:
            values.update(handed_on)
        return y

    @torch.compiler.disable
    def step(self, x: Tensor, memory: Memory, values: dict[str, Tensor] | None = None) -> Tensor:
        """Read more tokens of a stream into its memory.

        Parameters
        ----------
        x : Tensor
            The next token [B, D], or the next T >= 1 tokens [B, T, D].
        memory : Memory
            Of `empty_memory` and the tokens before; changed in place.
        values : dict of Tensor, optional
            As of `forward`.

        Returns
        -------
        Tensor
            y in the shape of x: what `forward` gives for these tokens behind those before.
        """
        tokens = x.unsqueeze(1) if x.dim() == 2 else x
        y, handed_on = self._ready().step(tokens, memory._handle, _EMPTY if values is None else values)
        if values is not None:
            values.update(handed_on)
        return y.squeeze(1) if x.dim() == 2 else y

    def empty_memory(self, batch: int) -> Memory:
        """Make the memory of `batch` streams before their first token."""
        return Memory(self._ready().empty_memory(batch))

    @torch.compiler.disable
    def matrix(self, x: Tensor) -> Tensor | None:
        """Return the mixing matrix [B, H, T, T] of tokens x [B, T, D], for mixers that are linear in their values."""
        return self._ready().matrix(x)

    def extra_repr(self) -> str:
        """Show width and options."""
        return ", ".join([str(self.d_model), *(f"{name}={value!r}" for name, value in self.options.items())])


def class_name(kind: str) -> str:
    """Name a mixer's class: gated_deltanet -> GatedDeltanet."""
    return "".join(word.capitalize() for word in kind.split("_"))


def annotation(option: dict) -> str:
    """Write an option's type as Python does."""
    names = {
        "integer": "int",
        "number": "float",
        "text": "str",
        "true or false": "bool",
        "list of numbers": "list[float]",
        "table or list": "dict | list",
    }
    kind, _, none = option["type"].partition(" or ") if option["type"].endswith('"none"') else (option["type"], "", "")
    return names[kind] + (' | Literal["none"]' if none else "")


def signature(kind: str) -> inspect.Signature:
    """Signature of a mixer's class; options by keyword."""
    parameters = [inspect.Parameter("d_model", inspect.Parameter.POSITIONAL_ONLY, annotation="int")]
    for option in REGISTRY[kind]["options"]:
        parameters.append(
            inspect.Parameter(
                option["name"], inspect.Parameter.KEYWORD_ONLY, default=option["default"], annotation=annotation(option)
            )
        )
    return inspect.Signature(parameters)


def _documentation(kind: str) -> str:
    lines = [REGISTRY[kind]["about"], "", "Parameters", "----------", "d_model : int", "    Model width D."]
    for option in REGISTRY[kind]["options"]:
        limits = f" ({option['range']})" if option["range"] else ""
        lines += [f"{option['name']} : {annotation(option)}, default {option['default']!r}"]
        lines += [f"    {option['help']}{limits}."]
    return "\n".join(lines) + "\n"


def _mixer_class(kind: str) -> type[Mixer]:
    def __init__(self, d_model: int, /, **options) -> None:
        Mixer.__init__(self, kind, d_model, **options)

    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *signature(kind).parameters.values()]
    )
    members = {"__init__": __init__, "__doc__": _documentation(kind), "__module__": "seqloom.nn"}
    return type(class_name(kind), (Mixer,), members)


CLASSES: dict[str, type[Mixer]] = {class_name(kind): _mixer_class(kind) for kind in REGISTRY}

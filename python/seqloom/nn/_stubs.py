"""Writes __init__.pyi: the signatures of the classes that are made from the registry, for editors and type checkers.

``python -m seqloom.nn._stubs`` writes the file; a test fails while it is not what this would write.
"""

import pathlib

from seqloom.nn._mixers import REGISTRY, annotation, class_name

FILE = pathlib.Path(__file__).with_name("__init__.pyi")

_HEAD = """# Written by `python -m seqloom.nn._stubs` from the registry; do not edit.
from typing import Literal

from seqloom.nn._decoder import Decoder as Decoder
from seqloom.nn._decoder import load_checkpoint as load_checkpoint
from seqloom.nn._decoder import save_checkpoint as save_checkpoint
from seqloom.nn._memory import Memory as Memory
from seqloom.nn._mixers import Mixer as Mixer

REGISTRY: dict[str, dict]
"""


def text() -> str:
    """Write the stubs of all mixers."""
    parts = [_HEAD]
    for kind in sorted(REGISTRY):
        options = [f"        {o['name']}: {annotation(o)} = {_default(o)}," for o in REGISTRY[kind]["options"]]
        star = ["        *,"] if options else []
        head = [f"class {class_name(kind)}(Mixer):", "    def __init__("]
        head += ["        self,", "        d_model: int,", "        /,"]
        parts.append("\n".join([*head, *star, *options, "    ) -> None: ...", ""]))
    return "\n".join(parts)


def _default(option: dict) -> str:
    return "..." if isinstance(option["default"], dict | list) else _quoted(option["default"])


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")

"""Finds libseqloom.so and loads it beside torch."""

import os
import pathlib

import torch

_HERE = pathlib.Path(__file__).resolve().parent


def candidates() -> list[pathlib.Path]:
    """Where the library may be: what SEQLOOM_LIBRARY says, else beside this file (a wheel), else in the source tree."""
    told = os.environ.get("SEQLOOM_LIBRARY")
    if told:
        return [pathlib.Path(told)]
    return [_HERE / "libseqloom.so", _HERE.parents[1] / "build" / "release" / "libseqloom.so"]


def load() -> pathlib.Path:
    """Load the library and return its path.

    Torch is imported by then, so that the loader takes torch's own libraries, wherever they are installed.

    Raises
    ------
    ImportError
        When there is no library, or it does not fit the installed torch.
    """
    paths = candidates()
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ImportError(
            f"libseqloom.so is not in {' or '.join(str(path) for path in paths)}; build it with `make build`, or set "
            "SEQLOOM_LIBRARY to its path"
        )
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"{path} cannot be loaded beside torch {torch.__version__}: {error}; build seqloom against this torch"
        ) from error
    return path

"""The tests run on an installed seqloom, or on the source tree where none is installed."""

import importlib.util
import pathlib
import sys

if importlib.util.find_spec("seqloom") is None:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

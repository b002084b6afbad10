"""The examples, at sizes that take seconds."""

import os
import pathlib
import runpy
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("SEQLOOM_BINARY", ROOT / "build" / "release" / "seqloom"))


def run(monkeypatch, name: str, *arguments: object):
    monkeypatch.setattr(sys, "argv", [name, *(str(argument) for argument in arguments)])
    return runpy.run_path(str(ROOT / "examples" / name))["main"]()


def test_training_loop(monkeypatch):
    """Chance is one in seven."""
    assert run(monkeypatch, "training_loop.py", "--steps", 60, "--tokens", 8, "--length", 2) > 0.5


def test_train_and_stream(monkeypatch, tmp_path):
    if not BINARY.is_file():
        pytest.skip(f"{BINARY} is not built; set SEQLOOM_BINARY")
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 40)
    sizes = ("--steps", 30, "--tokens", 20)
    said = run(monkeypatch, "train_and_stream.py", text, "--out", tmp_path / "run", "--binary", BINARY, *sizes)
    assert said.startswith("The ")
    assert len(said.strip()) > 10

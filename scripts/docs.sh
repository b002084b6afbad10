#!/usr/bin/env bash
# Writes docs/mixers.md from what the code registers and, where there is one, the note docs/notes/NAME.md; and the type
# stubs of seqloom.nn.
set -euo pipefail
cd "$(dirname "$0")/.."
build/release/seqloom mixers --json | python3 -c '
import json, pathlib, sys
print("# Mixers\n\nWritten by `make docs` from the registry; `seqloom mixers show NAME` prints the same.\n")
for mixer in json.load(sys.stdin):
    forms = ["forward"] + [name for name, present in mixer["forms"].items() if present]
    print("## {}\n\n{}\n\nForms: {}.\n".format(mixer["name"], mixer["about"], ", ".join(forms)))
    note = pathlib.Path("docs/notes", mixer["name"] + ".md")
    if note.exists():
        print(note.read_text())
    print("```toml\nmixer = {{ kind = \"{}\" }}\n```\n".format(mixer["name"]))
    print("| option | default | type | range | meaning |\n| --- | --- | --- | --- | --- |")
    for o in mixer["options"]:
        cells = [o["name"], json.dumps(o["default"]), o["type"], o["range"], o["help"]]
        print("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    print()
' > docs/mixers.md

# The signatures of seqloom.nn for editors.
SEQLOOM_LIBRARY=build/release/libseqloom.so PYTHONPATH=python .venv/bin/python -m seqloom.nn._stubs

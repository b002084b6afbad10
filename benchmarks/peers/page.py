"""Writes the peers' tables into a page, each between the markers of its script, and leaves the rest alone.

    python benchmarks/peers/page.py docs/performance.md build/bench-peers/*.json

Markers: <!-- bench-peers:NAME begin --> and <!-- bench-peers:NAME end -->. Tables without markers go to the page's end.
"""
import json
import pathlib
import re
import sys


def markdown(result):
    lines = [result["header"] + "."]
    for table in filter(lambda table: table["rows"], result["tables"]):
        rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
        lines += ["", table["title"] + ":", "", *("| " + " | ".join(row) + " |" for row in rows)]
    if result["notes"]:
        lines += ["", *(f"- {text}" for text in result["notes"])]
    return "\n".join(lines)


def place(page, result):
    begin, end = (f"<!-- bench-peers:{result['name']} {word} -->" for word in ("begin", "end"))
    block = f"{begin}\n{markdown(result)}\n{end}"
    if begin not in page:
        return f"{page.rstrip()}\n\n### `benchmarks/peers/{result['name']}.py`\n{block}\n"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(end) < page.index(begin):
        sys.exit(f"the page must have {begin} once, and {end} once after it")
    return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: block, page, flags=re.DOTALL)


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    path = pathlib.Path(sys.argv[1])
    page = path.read_text()
    for name in sys.argv[2:]:
        page = place(page, json.loads(pathlib.Path(name).read_text()))
    path.write_text(page)


if __name__ == "__main__":
    main()

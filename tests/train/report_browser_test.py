"""Opens a study's report in a real headless Chromium: usage report_browser_test.py SEQLOOM_BINARY.

Exit status 77 (skipped) when there is no Chromium. Needs the standard library alone.
"""

import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from html.parser import HTMLParser
from pathlib import Path

HOSTILE = "<img src=x onerror=alert(1)> & \\\"quotes\\\""
STUDY = f"""
[study]
title = "{HOSTILE}"
about = "<script>console.log('ran')</script>"
[task]
kind = "recall"
pairs = 4
keys = 8
values = 4
eval_pairs = [2, 4]
eval_rows = 16
[model]
width = 16
[train]
steps = 12
batch = 4
[[variant]]
name = "linear_attention"
model.layers = [{{ repeat = 2, mixer = {{ kind = "linear_attention", heads = 2 }} }}]
[[variant]]
name = "attention"
model.layers = [{{ repeat = 2, mixer = {{ kind = "attention", heads = 2, position = "rope" }} }}]
[[variant]]
name = "mamba"
model.layers = [{{ repeat = 2, mixer = {{ kind = "mamba", state = 4 }} }}]
[claim]
checks = [{{ metric = "accuracy@4", variant = "attention", beats = "mamba", by = 0.5 }}]
"""
VARIANTS = ["linear_attention", "attention", "mamba"]


class Page(HTMLParser):
    """What the tests ask of a DOM: table rows, curves, elements."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.curves, self.marks, self.elements, self.pictures = [], [], 0, [], 0
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        kind = (attributes.get("class") or "").split()
        self.elements.append((tag, attributes))
        if tag == "tr":
            self.rows.append([])
        self.in_cell = tag in ("td", "th")
        if self.in_cell:
            self.rows[-1].append("")
        if tag == "polyline" and len(attributes.get("points", "").split()) > 2:
            self.curves.append(attributes["points"])
        self.marks += "mark" in kind
        self.pictures += "matrix" in kind

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def browse(chromium, folder, *arguments):
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking " \
            "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
    command = [chromium, *flags.split(), f"--user-data-dir={folder / 'profile'}", *arguments,
               (folder / "out/report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, f"the page wrote to the console: {console}"
    return done.stdout


def pixels(png):
    """Rows of raw RGB(A) bytes of an 8-bit PNG without interlacing."""
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    assert depth == 8 and colour in (2, 6)
    size, at, packed = (3 if colour == 2 else 4), 8, b""
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IDAT":
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw, stride, above = zlib.decompress(packed), width * size, bytearray(width * size)
    for y in range(height):
        line = bytearray(raw[y * (stride + 1) + 1:(y + 1) * (stride + 1)])
        unfilter(raw[y * (stride + 1)], line, above, size)
        yield line, size
        above = line


def unfilter(kind, line, above, size):
    for i in range(len(line)):
        left = line[i - size] if i >= size else 0
        corner = above[i - size] if i >= size else 0
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = above[i]
        elif kind == 3:
            guess = (left + above[i]) // 2
        elif kind == 4:
            p = left + above[i] - corner
            guess = min((abs(p - left), 0, left), (abs(p - above[i]), 1, above[i]), (abs(p - corner), 2, corner))[2]
        else:
            return
        line[i] = (line[i] + guess) & 255


def check_dom(text):
    page = Page(text)
    by_name = {row[0]: row for row in page.rows}
    header = by_name["variant"]
    for column in ("parameters", "seconds", "tokens/s", "memory", "accuracy@2", "accuracy@4", "loss"):
        assert column in header, (column, header)
    for variant in VARIANTS:
        row = dict(zip(header, by_name[variant], strict=True))
        assert int(row["parameters"]) > 0 and float(row["loss"]) > 0, row
        assert re.fullmatch(r"[\d.]+ (B|KiB|MiB)", row["memory"]), row
        assert 0 <= float(row["accuracy@4"]) <= 1, row
    assert len(page.curves) >= len(VARIANTS), "a loss curve for each variant"
    assert page.marks > 4 * len(VARIANTS), page.marks
    assert page.pictures == 2 * len(VARIANTS), "first and last layer of each"
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "img", "iframe", "object", "link"}, names
    for tag, attributes in page.elements:
        assert not any(key.startswith("on") or key in ("src", "href") for key in attributes), (tag, attributes)
    assert "&lt;img src=x" in text, "the hostile title is shown as text"
    assert "not judged" in text


def check_picture(png):
    colours, inked, total = set(), 0, 0
    for line, size in pixels(png):
        row = [bytes(line[i:i + 3]) for i in range(0, len(line), size)]
        colours.update(row)
        inked += sum(pixel != row[0] for pixel in row)  # the page's margin is its background
        total += len(row)
    assert len(colours) > 50, f"{png}: only {len(colours)} colours"
    assert 0.01 < inked / total < 0.9, f"{png}: {inked / total:.3f} of it is drawn on"


def main():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("skipped: no Chromium on this machine")
        return 77
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "study.toml").write_text(STUDY)
        subprocess.run([sys.argv[1], "study", folder / "study.toml", "--steps", "12", "--out", folder / "out"], check=True)
        check_dom(browse(chromium, folder, "--dump-dom"))
        for width in (500, 1400):  # a headless window is at least 500 wide
            png = folder / f"{width}.png"
            browse(chromium, folder, f"--screenshot={png}", f"--window-size={width},1600")
            check_picture(png)
    print("the report is whole")
    return 0


if __name__ == "__main__":
    sys.exit(main())

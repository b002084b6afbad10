"""What the peer benchmarks share: options, the machine, runs in turn, tables, the limits.

A script asks `begin` for its options, adds rows to tables with `table` and ends with `finish`, which writes what
`--json FILE` asks for. Peer and seqloom run in turn and each ratio is that of one pair: neighbours on the machine slow
both. One thread is timed in CPU seconds of the process, more threads in wall time.
"""
import argparse
import importlib
import importlib.metadata
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import torch

HERE = pathlib.Path(__file__).parent
tables, notes, versions = [], [], []


def begin(description):
    """The script's options; loads seqloom's ops, seeds, sets the threads and prints the machine."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("library", help="path of libseqloom.so")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="write the tables into this file")
    options = parser.parse_args()
    options.pairs = 3 if options.quick else 9
    options.binary = pathlib.Path(options.library).with_name("seqloom")
    torch.ops.load_library(options.library)
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    options.header = header(options)
    print(options.header)
    return options


def header(options):
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    simd = " ".join(name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags)
    threads = "one thread, CPU time" if options.threads == 1 else f"{options.threads} threads, wall time"
    cores = len([line for line in lines if line.startswith("processor")])
    quick = ", --quick" if options.quick else ""
    date = time.strftime("%d %B %Y")
    return (f"{model} ({simd}), {cores} cores, {threads}, torch {torch.__version__}, {date}{quick}; medians of "
            f"{options.pairs} pairs")


def finish(options):
    if not options.json:
        return
    path = pathlib.Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = ", ".join([options.header, *versions])
    text = json.dumps({"name": path.stem, "header": header, "tables": tables, "notes": notes}, indent=1)
    path.write_text(text + "\n")


def note(text):
    """A line that stands below the tables."""
    if text not in notes:
        notes.append(text)
        print(text, flush=True)


def peer(module, package=None):
    """The module of a peer's package, or None with a line that says how to get it."""
    package = package or module.split(".")[0]
    try:
        found = importlib.import_module(module)
        version = f"{package} {importlib.metadata.version(package)}"
        if version not in versions:
            versions.append(version)
        return found
    except ImportError:
        pins = (HERE / "requirements.txt").read_text().splitlines()
        pin = next((line.split()[0] for line in pins if line.startswith(package + "==")), package)
        note(f"{package} is not installed: pip install {pin}")
        return None


class table:
    """Rows that are printed as they come."""

    def __init__(self, title, *columns):
        self.rows = []
        self.widths = [max(len(name), 24 if name in ("peer", "pass") else 8) for name in columns]
        tables.append({"title": title, "columns": columns, "rows": self.rows})
        print(f"\n{title}")
        self.print(columns)

    def print(self, cells):
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, self.widths)), flush=True)

    def add(self, *cells):
        self.rows.append([str(cell) for cell in cells])
        self.print(self.rows[-1])


def clock(threads):
    return time.process_time if threads == 1 else time.perf_counter


def seconds(work, threads=1, repeats=1):
    """Seconds that a call takes."""
    now = clock(threads)
    start = now()
    for _ in range(repeats):
        work()
    return (now() - start) / repeats


class Pairs:
    """Medians of runs in turn: `slow` and `fast` in seconds, `ratio` slow / fast of neighbouring runs."""

    def __init__(self, slow, fast):
        self.slow, self.fast = statistics.median(slow), statistics.median(fast)
        self.ratio = statistics.median(a / b for a, b in zip(slow, fast))


def paired(slow, fast, pairs):
    """`slow` and `fast` take a turn and return its seconds; the first turn of each warms up."""
    slow(), fast()
    times = [(slow(), fast()) for _ in range(pairs)]
    return Pairs(*zip(*times))


def passes(gradients):
    return "forward + backward" if gradients else "forward"


def rate(tokens, time):
    """Tokens a second, short."""
    value = tokens / time
    return f"{value:.0f}" if value < 1e4 else f"{value / 1e3:.0f}k"


def gemm_flops(dtype=torch.float32, threads=1, size=1024):
    """FLOP/s of a square matrix product."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    a @ b
    return 2 * size ** 3 / statistics.median(seconds(lambda: a @ b, threads) for _ in range(9))


def read_bandwidth(threads=1, mebibytes=1024):
    """Bytes/s of reading an array far larger than the caches: x . x, the fastest reader that torch has."""
    x = torch.ones(mebibytes << 18)
    x.dot(x)
    return x.nbytes / statistics.median(seconds(lambda: x.dot(x), threads) for _ in range(7))


def seqloom_bench(options, model, *arguments):
    """What `seqloom bench MODEL ... --json` says, on as many threads as the script runs."""
    command = [options.binary, "bench", *([model] if model else []), "--threads", options.threads, "--json", *arguments]
    command = [str(word) for word in command]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}: {result.stderr}")
    return json.loads(result.stdout)

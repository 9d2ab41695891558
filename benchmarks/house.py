"""How much of the house one meets: `python -m benchmarks.house RUN.yaml` on a run that was made with it.

Counts the files, functions and lines that run from `mvqkd extract` to the committed objects, and from the table to the
student's weights, as a debugger with `cluster.address: none` meets them; the longest function and file; and how long
commands take that have nothing to do.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.storage.location import Location

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("pipeline", "workers", "models", "storage")


def met(work: Callable[[], Any]) -> dict[str, int]:
    """Files, functions and lines of them that run in `work`, in all its threads."""
    seen: set[CodeType] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    ours = [code for code in seen if _room(code.co_filename) and not code.co_name.startswith("<")]
    lines = {(code.co_filename, line) for code in ours for _, _, line in code.co_lines() if line}
    return {"files": len({code.co_filename for code in ours}), "functions": len(ours), "lines": len(lines)}


def _room(file: str) -> bool:
    path = Path(file)
    return path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ROOMS


def longest() -> dict[str, Any]:
    """The longest file and function of the rooms, and all lines."""
    files, functions = [], []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text, name = path.read_text(), str(path.relative_to(ROOT))
            files.append((len(text.splitlines()), name))
            functions += [
                ((node.end_lineno or 0) - node.lineno + 1, f"{name}: {node.name}")
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.FunctionDef)
            ]
    return {
        "num_files": len(files),
        "all_lines": sum(lines for lines, _ in files),
        "longest_file": max(files),
        "longest_function": max(functions),
    }


def seconds(*arguments: str) -> float:
    """The fastest of three runs of a command."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "mvqkd", *arguments], check=True, capture_output=True)
        took.append(time.monotonic() - began)
    return min(took)


def _copy(source: Location, target: Location) -> None:
    for name in source.list():
        target.replace(name, source.read_bytes(name))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("run_file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    finished = Run(load_config(arguments.run_file, arguments.overrides))
    figures: dict[str, Any] = longest()
    with tempfile.TemporaryDirectory() as folder:
        here = [f"storage.root={folder}", "cluster.address=none", "distill.epochs=1"]
        run = Run(load_config(arguments.run_file, [*arguments.overrides, *here]))
        _copy(finished.plan("train"), run.plan("train"))
        _copy(finished.quantizer, run.quantizer)
        figures["extract"] = met(lambda: extract_stage(run))
        figures["distill"] = met(lambda: distill_stage(run))
    given = [part for override in arguments.overrides for part in ("--set", override)]
    figures["seconds"] = {
        "--help": seconds("--help"),
        "inspect": seconds("inspect", finished.table.url),
        "extract, nothing to do": seconds("extract", arguments.run_file, *given),
    }
    for key, value in figures.items():
        print(f"{key}: {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

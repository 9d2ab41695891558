"""What distillation brings, in folds of speakers, cell by cell.

    python -m benchmarks.distillation CORPUS TEACHER [--layer 3] [--cells none mvq-8] [--folds 0] [--work FOLDER]

CORPUS is a corpus folder with transcripts (such as AN4), TEACHER a teacher's folder. Each cell, a system in a fold, is
run by the commands that a user would type, one process at a time, and its figures go into --results as soon as it is
there; cells that stand there are not run again, and one that was interrupted goes on. With --table the table is printed
from --results alone.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.distillation.cells import CELLS, run_file
from benchmarks.distillation.folds import NUM_FOLDS, write_folds
from benchmarks.distillation.results import Results, markdown
from mvqkd.storage.location import open_location
from mvqkd.storage.summary import inspect_table


def main() -> None:
    arguments = parse()
    results = Results(arguments.results)
    if not arguments.table:
        work = arguments.work.resolve()
        write_folds(str(Path(arguments.corpus).resolve()), work)
        for name in arguments.cells:
            for fold in CELLS[name].folds:
                if fold in arguments.folds and not results.has(name, fold):
                    print(f"{name}, fold {fold} ...", file=sys.stderr, flush=True)
                    results.add(name, fold, run_cell(name, fold, arguments, work))
    print(json.dumps(results.summary()) if arguments.json else markdown(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("teacher")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS))
    parser.add_argument(
        "--folds", nargs="+", type=int, choices=range(NUM_FOLDS), default=list(range(NUM_FOLDS))
    )
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--results", type=Path, default=Path("docs/distillation.json"))
    parser.add_argument("--table", action="store_true", help="Print what there is, and run nothing.")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def run_cell(name: str, fold: int, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train and decode one system in one fold; its figures."""
    table = CELLS[name].table
    root = work / f"fold-{fold}" / table
    root.mkdir(parents=True, exist_ok=True)
    file = root / "run.yaml"
    content = run_file(
        name,
        teacher=str(Path(arguments.teacher).resolve()),
        layer=arguments.layer,
        fold=str(work / f"fold-{fold}"),
        root=str(root),
    )
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    for stage in ("plan", "fit", "extract"):
        call(stage, file)
    is_whole = not (root / "students" / name / "training.jsonl").exists()
    began_s = cpu_seconds()
    trained = call("distill", file, "--student", name)
    trained_s = cpu_seconds() - began_s
    decoded = call("decode", file, "--student", name)
    summary = inspect_table(open_location(str(root / "table")))
    speakers: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for line in (root / "students" / name / "errors.jsonl").read_text().splitlines():
        row = json.loads(line)
        speakers[row["speaker"]][0] += row["substitutions"] + row["deletions"] + row["insertions"]
        speakers[row["speaker"]][1] += row["words"]
    points = [
        json.loads(line) for line in (root / "students" / name / "training.jsonl").read_text().splitlines()
    ]
    return {
        "wer": decoded["wer"],
        "speakers": dict(speakers),
        # Of a training that went on from a checkpoint, only a part would be counted.
        "cpu_s": round(trained_s, 1) if is_whole else None,
        "epochs": trained["epochs"],
        "steps": trained["steps"],
        "wait_share": sum(point["wait_share"] for point in points) / max(1, len(points)),
        "target_bytes_per_hour": summary.total_bytes / max(1e-9, summary.hours),
    }


def cpu_seconds() -> float:
    """Of all commands so far: other work on the machine changes it little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(stage: str, file: Path, *options: str) -> dict[str, Any]:
    """A command as a user types it; its result."""
    done = subprocess.run(
        [sys.executable, "-m", "mvqkd", stage, str(file), *options, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()

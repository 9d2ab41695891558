"""`python -m benchmarks.nothing_to_do RUN.yaml --shards 20000`: `mvqkd extract` on a large table that is complete.

Makes a table of so many shards out of one shard of a finished run, under the names that its plan gives them, and times
the command: once when it has to read every footer, and when it finds all of them counted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.storage.table import IndexTable
from mvqkd.workers.plan import read_plan, write_plan
from mvqkd.workers.quantizer_record import load_record
from mvqkd.workers.shards import ShardsWriter


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nothing_to_do", description=__doc__)
    parser.add_argument("run_file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--shards", type=int, default=20_000)
    arguments = parser.parse_args()
    finished = Run(load_config(arguments.run_file, arguments.overrides))
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.overrides, f"storage.root={folder}"]
        run = Run(load_config(arguments.run_file, overrides))
        make_table(finished, run, arguments.shards)
        command = [sys.executable, "-m", "mvqkd", "extract", arguments.run_file, "--json"]
        command += [part for override in overrides for part in ("--set", override)]
        figures = {"shards": arguments.shards}
        for name in ("footers_s", "counted_s", "again_s"):
            began = time.monotonic()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            figures[name] = round(time.monotonic() - began, 2)
            result = json.loads(done.stdout.splitlines()[-1])
            assert (result["shards_found_done"], result["shards_extracted"]) == (arguments.shards, 0)
    print(json.dumps(figures))


def make_table(finished: Run, run: Run, num_shards: int) -> None:
    """A plan and a table of so many shards, all alike but for their names."""
    plan = read_plan(finished.plan("train"))
    assert plan is not None, "a finished run has a plan"
    first = plan.shards[0]
    writer = ShardsWriter(run.plan("train"))
    for number in range(num_shards):
        writer.add(replace(first, position=number, digest=f"{number:064x}"))
    shards = writer.finish()
    write_plan(replace(plan, location=run.plan("train"), shards=shards))
    for name in finished.quantizer.list():
        run.quantizer.replace(name, finished.quantizer.read_bytes(name))
    table = IndexTable.create(
        run.table, load_record(run.quantizer).contract(search=run.config.extract.search)
    )
    contract = table.contract.digest()
    data = finished.table.read_bytes(table.shard_path(first.name(contract)))
    for shard in shards:
        # Not `write_once`: 20,000 times fsync would measure the disk.
        Path(run.table.full_path(table.shard_path(shard.name(contract)))).write_bytes(data)


if __name__ == "__main__":
    main()

"""`python -m tests.faults.soak`: a run in which everything goes wrong, again and again, until it is done.

First the run is done once with nothing in its way, and the memory of its processes is watched. Then it is done again
among faults: each strikes as many shards as `--chance` says, and those of the command, the machines and the store a
tenth as many. Whenever a command ends before the table is whole, the same command is given again. At the end the table
has to be that of the first run, byte for byte, and no shard may have been computed that was in it.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "faults"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workers"))

from faults_rig import PATHS, TESTS, Faults, Workers, make_rig
from proxy import fault_proxy
from s3_server import running_s3_server
from soak_report import print_report
from soak_troubles import Memory, Store, Troubles, machines
from tiny import objects
from workers_fakes import write_sound

OF_SHARDS = ("kill", "kill_after_put", "deadly", "hang", "raise", "term")
TIMEOUT_S = 8.0
CLOCK_S = 300.0


def soak(
    folder: Path, *, num_shards: int, chance: float, storage: str, workers: Workers, seed: int = 0
) -> dict[str, Any]:
    """All of it; what happened and how long it took. Raises AssertionError when anything is lost or twice there."""
    rng = random.Random(seed)
    rig = make_rig(
        folder / "rig",
        shard_hours=1 / 3600,
        corpus=partial(write_short_corpus, shards=num_shards),
        undisturbed=(),
    )
    with place(folder, storage) as store, machines() as cluster:
        keys = {"address": cluster.address}, {"actors": 2, "shard_timeout_s": TIMEOUT_S}
        calm, faults = (
            rig.at(folder / name, store.root(name), **store.options)
            .with_keys("cluster", **keys[0])
            .with_keys("extract", **keys[1])
            for name in ("calm", "disturbed")
        )
        spoiled = (
            spoil_audio(Path(rig.tree["corpus"]["root"]), rng, share=chance) if workers == "real" else {}
        )
        began = time.monotonic()
        memory = undisturbed(calm, workers)
        calm_s = time.monotonic() - began
        wanted = objects(store.direct(calm).run.table)
        total = sum(name.startswith("shard-") for name in wanted)
        began = time.monotonic()
        troubles = Troubles(
            faults, rng, total=total, chance=chance, cluster=cluster, store=store, workers=workers
        )
        struck = {kind: rng.sample(range(total), max(1, round(chance * total))) for kind in OF_SHARDS}
        by_shard = {n: tuple(kind for kind in OF_SHARDS if n in struck[kind]) for n in range(total)}
        mischief = faults.mischief(faults=by_shard, or_later=True, clock_s=CLOCK_S)
        troubles.until_done(mischief)
        # What always kills its worker was set aside; once that is put right, the rest is done too.
        set_aside = troubles.num_missing()
        troubles.finish(faults.mischief())
        assert objects(store.direct(faults).run.table) == wanted, (
            "another table than that of the undisturbed run"
        )
        computed = mischief.computed()
    met = {kind: mischief.met(kind) for kind in OF_SHARDS if kind != "deadly"}
    return {
        "shards": total,
        "chance": chance,
        "storage": storage,
        "workers": workers,
        "seed": seed,
        "undisturbed_s": calm_s,
        "disturbed_s": time.monotonic() - began,
        "commands": troubles.num_commands,
        "happened": {**met, "deadly": len(struck["deadly"]), **troubles.happened, **spoiled},
        "set_aside": set_aside,
        "computed": len(computed),
        "memory": memory,
    }


def write_short_corpus(root: Path, *, shards: int) -> None:
    """Two utterances of half a second for each shard."""
    (root / "audio/train").mkdir(parents=True)
    lines = ["id\tsplit\tspeaker\ttext"]
    for number in range(2 * shards):
        write_sound(root / f"audio/train/u{number:05d}.wav", 0.5)
        lines.append(f"u{number:05d}\ttrain\ts{number % 4}\ta cat")
    (root / "transcripts.tsv").write_text("\n".join(lines) + "\n")


def spoil_audio(corpus: Path, rng: random.Random, *, share: float) -> dict[str, int]:
    """After planning, cut off the first utterance of some shards and put longer audio in the place of others."""
    firsts = sorted((corpus / "audio/train").iterdir())[::2]
    number = max(1, round(share * len(firsts)))
    chosen = rng.sample(firsts, 2 * number)
    for path in chosen[:number]:
        path.write_bytes(path.read_bytes()[:30])
    for path in chosen[number:]:
        write_sound(path, 0.9)
    return {"audio damaged": number, "audio replaced": number}


@contextmanager
def place(folder: Path, storage: str) -> Iterator[Store]:
    """Where the results lie: a folder, or a bucket of a server behind a proxy."""
    if storage == "local":
        yield Store(folder=folder)
        return
    with running_s3_server(folder / "server") as server, fault_proxy(server.endpoint_url) as proxy:
        store = Store(folder=folder, server=server, proxy=proxy)
        store.write_keys(server.key, server.secret)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(store.keys)
        yield store


def undisturbed(calm: Faults, workers: Workers) -> dict[str, Any]:
    """One command with nothing in its way; the memory of its processes."""
    command = calm.start(calm.mischief(), workers=workers)
    memory = Memory(command.pid)
    while command.poll() is None:
        memory.look(len(calm.committed()))
        time.sleep(0.5)
    _, said = command.communicate()
    assert command.returncode == 0, said
    return memory.report()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--shards", type=int, default=2000)
    parser.add_argument("--chance", type=float, default=0.05, help="of each fault, for each shard")
    parser.add_argument("--storage", choices=["local", "s3"], default="s3")
    parser.add_argument("--workers", choices=["light", "real"], default="real", help="light: without torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one line of JSON, last on standard output")
    arguments = parser.parse_args()
    # Of the nodes and so of the workers.
    os.environ["PYTHONPATH"] = os.pathsep.join(str(TESTS / folder) for folder in PATHS)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="mvqkd-soak-") as folder:
        report = soak(
            Path(folder),
            num_shards=arguments.shards,
            chance=arguments.chance,
            storage=arguments.storage,
            workers=arguments.workers,
            seed=arguments.seed,
        )
    print_report(report)
    if arguments.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()

"""Extraction beside others, in one run on the same audio.

    python -m benchmarks.extraction RUN.yaml [--set KEY=VALUE] [--json]

The run's plan and quantizer are made where they are not there yet. Figures are hours of audio per hour. The bare
teacher and one actor's worker take turns on some shards; the whole command, Ray Data and the loop start anew each.
Then the engine around a teacher that takes an hour of audio in a second, a stand-in for an H100. The last line is a
dictionary of the ratios; with --json it has all figures.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.extraction.corpus import Work, prepare
from benchmarks.extraction.engine import feed, put_speech, write_speech
from benchmarks.extraction.ours import bare_and_actor, command
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.storage.location import open_location
from mvqkd.workers.corpus.sources import resolved

SYSTEMS = ("actor", "command", "ray-data", "plain-loop", "engine", "engine-s3")


def main() -> None:
    arguments = parse()
    work = prepare(Run(load_config(arguments.run_file, arguments.overrides)), hours=None)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mvqkd-benchmark-") as name:
        folder = Path(name)
        for system in arguments.systems:
            tell(f"{system} ...")
            figures[system] = MEASURED[system](work, folder, arguments)
            tell(f"{system}: {shown(figures[system])}")
    figures["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    last = ratios(figures)
    print(json.dumps({**last, **figures} if arguments.json else last))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__)
    parser.add_argument("run_file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--pairs", type=int, default=5, help="of the bare teacher and the actor")
    parser.add_argument("--hours", type=float, default=0.1, help="of audio for the pairs and the loop")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for the pairs and the loop")
    parser.add_argument("--engine-hours", type=float, default=4.0)
    parser.add_argument("--engine-utterance-s", type=float, nargs="+", default=[12.0, 4.0])
    parser.add_argument("--s3-latency-ms", type=float, default=30.0, help="of a GET of audio, for engine-s3")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure_actor(work: Work, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One actor's worker beside the bare teacher."""
    part = prepare(work.run, hours=arguments.hours)
    return bare_and_actor(part, folder, threads=arguments.threads, pairs=arguments.pairs)


def measure_command(work: Work, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`mvqkd extract`."""
    return on_ray(lambda: command(work, arguments.overrides, arguments.run_file, folder))


def measure_ray_data(work: Work, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A Ray Data pipeline around the same classes."""
    from benchmarks.extraction.peers import ray_data

    return on_ray(lambda: ray_data(work, work.cuts, folder))


def measure_plain_loop(work: Work, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A loop with `transformers`, on a part: it is slow."""
    from benchmarks.extraction.peers import plain_loop

    part = prepare(work.run, hours=arguments.hours / 4)
    return plain_loop(part, part.cuts[:40], folder, threads=arguments.threads)


def measure_engine(work: Work, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The engine around a teacher that sleeps, with utterances of several lengths, on the local disk."""
    sources, found = local_sources(work), {}
    for utterance_s in arguments.engine_utterance_s:
        place = folder / f"engine-{utterance_s:g}"
        place.mkdir()
        cuts = write_speech(place / "audio", sources, hours=arguments.engine_hours, utterance_s=utterance_s)
        found[f"{utterance_s:g} s"] = feed(
            cuts,
            open_location(str(place / "plan")),
            open_location(str(place / "table")),
            shard_hours=0.5,
            decode_threads=work.run.config.extract.decode_threads,
            seconds_per_hour=1.0,
        )
    return found


def measure_engine_s3(work: Work, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """As `measure_engine`, with audio, plan and table in the S3 server of the tests, which works on the same cores."""
    from tests.s3_server import running_s3_server

    sources, found = local_sources(work), {}
    with running_s3_server(folder / "s3") as server:
        os.environ.update(server.environment)
        delay_gets(arguments.s3_latency_ms / 1000)
        for utterance_s in arguments.engine_utterance_s:
            place = open_location(f"s3://{server.bucket}/{utterance_s:g}")
            cuts = put_speech(
                folder / f"engine-s3-{utterance_s:g}",
                place.join("audio"),
                sources,
                hours=arguments.engine_hours,
                utterance_s=utterance_s,
            )
            before_s = cpu_s(server.processes[-1].pid)
            found[f"{utterance_s:g} s"] = feed(
                cuts,
                place.join("plan"),
                place.join("table"),
                shard_hours=0.5,
                decode_threads=work.run.config.extract.decode_threads,
                seconds_per_hour=1.0,
            )
            used_s = cpu_s(server.processes[-1].pid) - before_s
            found[f"{utterance_s:g} s"]["server_cpu_s_per_hour"] = used_s / arguments.engine_hours
    return found


def delay_gets(seconds: float) -> None:
    """Let GETs take as long as over a network; the server here answers in a millisecond."""
    from mvqkd.storage.s3_gets import S3Gets

    get = S3Gets.get

    def later(*arguments: Any) -> bytes | None:
        time.sleep(seconds)
        return get(*arguments)

    S3Gets.get = later  # type: ignore[method-assign]


def local_sources(work: Work) -> list[Path]:
    """The audio files of the run's cuts."""
    return [Path(resolved(cut, work.run.corpus_root).sources[0].source) for cut in work.cuts]


def cpu_s(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


MEASURED: dict[str, Callable[[Work, Path, argparse.Namespace], dict[str, Any]]] = {
    "actor": measure_actor,
    "command": measure_command,
    "ray-data": measure_ray_data,
    "plain-loop": measure_plain_loop,
    "engine": measure_engine,
    "engine-s3": measure_engine_s3,
}


def on_ray(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure on a Ray of this machine that runs already."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        return measure()
    finally:
        ray.shutdown()


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """What is compared, where both sides were measured."""
    whole = {name: each for name, each in figures.items() if name in ("command", "ray-data", "plain-loop")}
    speed = {name: each["hours_per_hour"] for name, each in whole.items()}
    found = {}
    if "actor" in figures:
        found["actor_to_bare_teacher"] = figures["actor"]["actor_to_bare_teacher"]
        found["quantizer_share"] = figures["actor"]["share_quantizer"]
    for peer in ("ray-data", "plain-loop"):
        if "command" in speed and peer in speed:
            found[f"command_to_{peer.replace('-', '_')}"] = speed["command"] / speed[peer]
    for engine in ("engine", "engine-s3"):
        for name, each in figures.get(engine, {}).items():
            found[f"{engine.replace('-', '_')}_hours_per_hour_{name.replace(' ', '_')}"] = each[
                "hours_per_hour"
            ]
    return {name: round(value, 4) for name, value in found.items()}


def shown(figures: dict[str, Any]) -> str:
    """One line."""
    return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()})


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

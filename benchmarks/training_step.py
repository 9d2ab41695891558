"""`python -m benchmarks.training_step RUN.yaml`: what targets cost in a training step, and what waiting for data costs.

The same student on the same batches takes steps in turn: without targets, with the codes of the run's table, and with
the run's teacher in the training step (L2 on its embeddings). The last line is a dictionary of medians and ratios. The
run needs its table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping

import torch

from mvqkd.models.students.units import train_units
from mvqkd.pipeline.run_file import load_config
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.find_speech import find_speech
from mvqkd.storage.table import IndexTable
from mvqkd.workers.distill.data import DataState
from mvqkd.workers.distill.job import Place, TrainJob
from mvqkd.workers.distill.meter import Meter
from mvqkd.workers.distill.settings import TargetConfig
from mvqkd.workers.distill.trainer import StudentTrainer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("run_file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--steps", type=int, default=20, help="of each kind, after three that do not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = Run(load_config(arguments.run_file, arguments.overrides))
    trainers = build(run, torch.device(arguments.device))
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    steps = {name: trainer._data.steps(DataState()) for name, trainer in trainers.items()}
    for number in range(arguments.steps + 3):
        for name, trainer in trainers.items():
            step = next(steps[name])
            began = time.perf_counter()
            trainer._train_step(step, Meter())
            if number >= 3:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(json.dumps({**{f"{name}_s": s for name, s in medians.items()}, **ratios(medians)}))


def build(run: Run, device: torch.device) -> dict[str, StudentTrainer]:
    """Trainers of one student: without targets, with codes, with a live teacher."""
    student, distill = run.config.student_settings(run.config.default_student())
    table = IndexTable.open(run.table)
    found = find_speech(run, distill, table, [])
    units = train_units(student.units, found.texts, vocab_size=student.vocab_size)
    live = {"live": TargetConfig(student_layer=distill.student_layer, scale=0.01)}
    kinds = {
        "plain": distill.without_codes(),
        "codes": distill,
        "live_teacher": distill.without_codes().model_copy(update={"targets": live}),
    }
    return {
        name: TrainJob(
            digest=name,
            speech=found.speech,
            units=(units.kind, units.data),
            student=student,
            distill=settings,
            options=run.config.storage.options,
            out=run.root.join("benchmark"),
            threads=1,
            teacher=run.config.teacher,
            quantizer=run.quantizer,
        ).build(Place(device=device))
        for name, settings in kinds.items()
    }


def ratios(medians: Mapping[str, float]) -> dict[str, float]:
    """Against the plain step."""
    return {f"{name}_to_plain": medians[name] / medians["plain"] for name in ("codes", "live_teacher")}


if __name__ == "__main__":
    main()

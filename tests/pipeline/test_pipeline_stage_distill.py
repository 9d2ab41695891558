"""The distill stage, in this process: damaged tables and students, overtaking, resuming, side by side."""

from pathlib import Path

import pytest
from tiny import Done, copy_of, make_run, run_tree

from mvqkd.pipeline.cluster.pool import PoolHere, Resources
from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.storage.errors import TableError
from mvqkd.storage.shared_place import SharedPlaceError
from mvqkd.workers.distill.trainer import StudentTrainer

pytestmark = pytest.mark.integration


def test_a_truncated_table_file_is_named(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table"), tmp_path)
    victim = next(iter(sorted((tmp_path / "run/table").glob("shard-*.parquet"))))
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(TableError, match=victim.name):
        distill_stage(run)


def test_more_workers_than_there_is_room_for(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "quantizer", "table"), tmp_path, "distill.workers=64")
    with pytest.raises(StageError, match=r"distill\.workers 64"):
        distill_stage(run)


def test_a_worker_asks_for_no_more_than_one_machine_has(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cluster of many: Ray would wait for a larger one."""
    asked = []
    monkeypatch.setattr(PoolHere, "resources", Resources(cpus=12, gpus=0, machine_cpus=3))
    monkeypatch.setattr(PoolHere, "train", lambda self, job, **_: asked.append(job.threads))
    tree = copy_of(done, tmp_path, "quantizer", "table")
    for workers in (1, 6):
        # Nothing was trained, so there is no student to report of.
        with pytest.raises(SharedPlaceError):
            distill_stage(make_run(tree, tmp_path, f"distill.workers={workers}"))
    assert asked == [3, 2]


def test_a_damaged_student_is_trained_again(done: Done, tmp_path: Path) -> None:
    run = make_run(copy_of(done, tmp_path, "plan", "quantizer", "table", "students"), tmp_path)
    weights = tmp_path / "run/students/mvqkd/student.safetensors"
    whole_bytes = weights.read_bytes()
    weights.write_bytes(whole_bytes[:-10])
    with pytest.raises(StageError, match="mvqkd distill"):
        decode_stage(run)
    distill_stage(run)
    assert weights.read_bytes() == whole_bytes


def test_a_training_that_was_overtaken_says_so(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        copy_of(done, tmp_path, "plan", "quantizer", "table", "students"), tmp_path, "distill.seed=7"
    )
    other = run.student("baseline")

    def overtaken(*_: object, **__: object) -> None:
        """What lies there at the end is the student of another training."""
        for name in ("student.safetensors", "student.json"):
            run.student("mvqkd").replace(name, other.read_bytes(name))

    monkeypatch.setattr(PoolHere, "train", overtaken)
    with pytest.raises(StageError, match=r"another training.*storage\.root of its own"):
        distill_stage(run)


def test_a_student_that_a_worker_wrote_elsewhere_is_not_taken_for_the_old_one(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(
        copy_of(done, tmp_path, "plan", "quantizer", "table", "students"), tmp_path, "distill.seed=7"
    )
    monkeypatch.setattr(PoolHere, "train", lambda *_, **__: None)
    with pytest.raises(SharedPlaceError, match=r"still of the training before.*s3://bucket/prefix"):
        distill_stage(run)


def test_before_its_time_it_says_what_to_run(corpus_root: Path, teacher_path: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="mvqkd extract"):
        distill_stage(make_run(run_tree(corpus_root, teacher_path, tmp_path / "run"), tmp_path))


def test_an_interrupted_training_goes_on_where_it_stopped(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = copy_of(done, tmp_path, "plan", "quantizer", "table")
    settings = ("distill.epochs=6", "distill.checkpoint_steps=2", "distill.loss_scale=0.2")
    run = make_run(tree, tmp_path, *settings)
    step, steps = StudentTrainer._train_step, []

    def break_off(trainer: StudentTrainer, batch: object, meter: object) -> object:
        steps.append(trainer.step)
        if trainer.step == 5:
            raise KeyboardInterrupt
        return step(trainer, batch, meter)

    with monkeypatch.context() as patch:
        patch.setattr(StudentTrainer, "_train_step", break_off)
        with pytest.raises(KeyboardInterrupt):
            distill_stage(run)
    with monkeypatch.context() as patch:
        patch.setattr(
            StudentTrainer,
            "_train_step",
            lambda trainer, *given: steps.append(trainer.step) or step(trainer, *given),
        )
        distill_stage(run)
    assert steps[:8] == [0, 1, 2, 3, 4, 5, 4, 5]
    elsewhere = (f"storage.root={tmp_path}/other", f"table.path={tmp_path}/run/table")
    undisturbed = make_run(tree, tmp_path, *settings, *elsewhere)
    distill_stage(undisturbed)
    weights = [
        (tmp_path / folder / "students/mvqkd/student.safetensors").read_bytes() for folder in ("run", "other")
    ]
    assert weights[0] == weights[1]

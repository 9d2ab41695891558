"""One system of a comparison: a student of a run, with all that its folders know of it by now."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from mvqkd.pipeline.errors import StageError
from mvqkd.pipeline.run_folder import Run
from mvqkd.pipeline.stages.scored import read_errors
from mvqkd.storage.artifacts import read_json
from mvqkd.storage.errors import ArtifactError, ObjectMissingError
from mvqkd.workers.distill.student_record import StudentRecord, load_record
from mvqkd.workers.section import Section, identity_of, speed_only_keys

if TYPE_CHECKING:
    from mvqkd.workers.recognize.score import NotRecognized, Recognized

MOST_POINTS = 240
"""Of a learning curve; longer ones are thinned out by means of neighbours."""
_OF_RUN = ("corpus", "teacher", "quantizer", "extract", "table")
_STATE = frozenset(
    ("epoch", "step", "total_steps", "done", "hours", "seconds", "lr", "left_out", "valid_wer")
)
"""Keys of a point that say how far the training has come; its other figures are means since the point before."""
State = Literal["decoded", "trained", "begun", "not trained"]


@dataclass(frozen=True, kw_only=True)
class System:
    """A student of a run.

    Attributes:
        name: unique in the comparison.
        run, student, url: which one it is.
        state: how far it is.
        note: what is missing or wrong, and the command that makes it; None when nothing is.
        score: fields of `recognize.score.Score`; None before it was decoded.
        training: steps, seconds and so on, as far as they are known.
        targets: for people, what it learned besides the transcripts; None for nothing.
        has_targets: whether it learned from a table's targets.
        curve: points of its training, at most `MOST_POINTS`.
        settings: all that it was made with, by the keys of the run file.
        recognized: its utterances of the test part.
    """

    name: str
    run: str
    student: str
    url: str
    state: State
    note: str | None
    score: dict[str, Any] | None
    training: dict[str, Any]
    targets: str | None
    has_targets: bool
    curve: list[dict[str, Any]]
    settings: dict[str, Any]
    recognized: tuple["Recognized", ...]

    @property
    def wer(self) -> float:
        """Word error rate of a system that was decoded."""
        assert self.score is not None, f"{self.name} was not decoded"
        return float(self.score["wer"])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: all but the settings and the utterances, which a comparison shows side by side."""
        hidden = ("settings", "recognized")
        return {key: value for key, value in vars(self).items() if key not in hidden}


def read_system(run: Run, student: str, *, name: str, report: Mapping[str, Any]) -> System:
    """What there is of a student.

    Args:
        name: in the comparison.
        report: `run.reports.whole()`.
    """
    known: dict[str, Any] = report.get("students", {}).get(student, {})
    notes: list[str] = []
    record = _record(run, student, notes)
    points = known.get("curve") or _curve_so_far(run, student)
    state: State = "trained" if "steps" in known else "begun" if points else "not trained"
    score: dict[str, Any] | None = None
    recognized: tuple[Recognized, ...] = ()
    if state == "begun":
        notes.append(f"its training has not ended; {_command('distill', student)} goes on with it")
    elif state == "not trained":
        notes.append(f"{_command('distill', student)} trains it")
    elif "score" not in known:
        notes.append(f"not decoded since it was trained; {_command('decode', student)} does it")
    else:
        try:
            results, left_out = read_errors(run, student, known["score"])
            score, recognized, state = _score(known["score"], results, left_out), tuple(results), "decoded"
        except StageError as error:
            notes.append(str(error))
    settings = _settings(run, student, record, notes)
    contract = {} if record is None else record.contract
    targets = _targets(settings, contract, points)
    return System(
        name=name,
        run=run.name,
        student=student,
        url=run.student(student).url,
        state=state,
        note="; ".join(notes) or None,
        score=score,
        training=training_figures(known, points, settings),
        targets=targets,
        has_targets=targets is not None,
        curve=thinned(points),
        settings=settings,
        recognized=recognized,
    )


def _command(stage: str, student: str) -> str:
    return f"`mvqkd {stage} --student {student}`"


def _record(run: Run, student: str, notes: list[str]) -> StudentRecord | None:
    out = run.student(student)
    try:
        return load_record(out) if out.exists("student.json") else None
    except ArtifactError as error:
        notes.append(str(error))
        return None


def _curve_so_far(run: Run, student: str) -> list[dict[str, Any]]:
    """Of a training that has not ended: lines of JSON, or one file of versions before 0.3."""
    out = run.student(student)
    points: Any = None
    with suppress(ObjectMissingError, ValueError):
        lines = out.read_bytes("training.jsonl").decode().splitlines()
        # Those of the last training; another one before it had another digest.
        found = [json.loads(line) for line in lines]
        points = [point for point in found if point["digest"] == found[-1]["digest"]]
    if points is None:
        with suppress(ObjectMissingError, ArtifactError):
            content = read_json(out, "curve.json")
            points = content.get("points") if isinstance(content, dict) else None
    if not isinstance(points, list):
        return []
    return [{key: value for key, value in point.items() if key != "digest"} for point in points]


def _score(
    score: dict[str, Any], results: Sequence["Recognized"], left_out: Sequence["NotRecognized"]
) -> dict[str, Any]:
    """The report's figures; those that earlier versions did not report are counted now."""
    from mvqkd.workers.recognize.score import score as counted

    figures = {key: value for key, value in score.items() if key not in ("against", "digest", "errors")}
    if "wer_low" not in figures:
        again = asdict(counted([*results, *left_out]))
        hours = {"hours", "left_out_hours"}  # lines from before lengths were kept have none
        figures |= {key: value for key, value in again.items() if key not in figures and key not in hours}
    return figures


def training_figures(
    known: Mapping[str, Any], points: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """How long a training took, as its curve tells; None for what is not known.

    A training that was interrupted counts its seconds from its last start: the parts are added up.
    """
    seconds = utterances = waited = 0.0
    before = 0.0
    waits = False
    for point in points:
        now = float(point.get("seconds") or 0.0)
        took = now - before if now >= before else now
        before = now
        seconds += took
        utterances += took * float(point.get("utterances_per_s") or 0.0)
        if point.get("wait_share") is not None:
            waits, waited = True, waited + took * float(point["wait_share"])
    last = points[-1] if points else {}
    return {
        "steps": known.get("steps", last.get("step")),
        "total_steps": last.get("total_steps", known.get("steps")),
        "done": 1.0 if "steps" in known else last.get("done"),
        "epochs": known.get("epochs", last.get("epoch")),
        "parameters": known.get("parameters"),
        "seconds": seconds if points else None,
        "utterances_per_s": utterances / seconds if seconds else None,
        "wait_share": waited / seconds if waits and seconds else None,
        "workers": settings.get("distill.workers"),
        "left_out": known.get("left_out"),
    }


def thinned(points: Sequence[Mapping[str, Any]], most: int = MOST_POINTS) -> list[dict[str, Any]]:
    """At most so many points; each stands for some neighbours, at the step of the last of them, with their means."""
    group = -(-len(points) // most) if points else 1
    groups = [points[first : first + group] for first in range(0, len(points), group)]
    return [_mean(each) for each in groups]


def _mean(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mean = dict(points[-1])
    if len(points) == 1:
        return mean
    keys = {key for point in points for key in point}
    for key in keys:
        values = [point[key] for point in points if point.get(key) is not None]
        if key in _STATE:
            mean[key] = values[-1] if values else None
        elif values and all(isinstance(value, dict) for value in values):
            mean[key] = _mean(values)
        elif values and all(isinstance(value, int | float) for value in values):
            mean[key] = sum(values) / len(values)
    return mean


def _settings(run: Run, student: str, record: StudentRecord | None, notes: list[str]) -> dict[str, Any]:
    """By the keys of the run file: those that it was trained with, or would be, and those of its run."""
    sizes, distill = run.config.student_settings(student)
    own = _flat({"student": identity_of(sizes), "distill": identity_of(distill)})
    if record is not None:
        trained = _flat(
            {"student": _complete(sizes, record.student), "distill": _complete(distill, record.distill)}
        )
        if changed := _changed(trained, own):
            notes.append(f"the run file has changed since it was trained: {changed}")
        own = trained
    return own | _flat({section: identity_of(getattr(run.config, section)) for section in _OF_RUN})


def _complete(now: Any, recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a section of the record decides; settings that did not exist when it was written had their defaults."""
    try:
        return identity_of(type(now)(**recorded))
    except (TypeError, ValueError):
        # By a version with other settings, perhaps a later one.
        speed_only = speed_only_keys(type(now)) if isinstance(now, Section) else set()
        return {key: value for key, value in recorded.items() if key not in speed_only}


def _changed(trained: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in {**trained, **now} if trained.get(key) != now.get(key)]
    return ", ".join(f"{key} {trained.get(key)!r}, now {now.get(key)!r}" for key in keys)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return flat


def _targets(
    settings: Mapping[str, Any], contract: Mapping[str, Any], points: Sequence[Mapping[str, Any]]
) -> str | None:
    more = dict.fromkeys(key.split(".")[2] for key in settings if key.startswith("distill.targets."))
    own = _own_targets(settings, contract) if settings.get("distill.loss_scale") else None
    named = [name for name in _heads(points) if name != "codebook"]
    return ", ".join(filter(None, [own, *dict.fromkeys([*more, *named])])) or None


def _heads(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return list((points[-1].get("head_losses") or {}) if points else {})


def _own_targets(settings: Mapping[str, Any], contract: Mapping[str, Any]) -> str:
    """Of the run's own table."""
    if contract.get("payload") == "embeddings" or settings.get("table.target") == "embeddings":
        distance = settings.get("distill.distance") or "l2"
        return f"embeddings, {distance}"
    codebooks = contract.get("num_codebooks") or settings.get("quantizer.num_codebooks")
    taken = settings.get("distill.codebooks") or codebooks
    rate = f", {contract['frame_rate_hz']:g} Hz" if "frame_rate_hz" in contract else ""
    return f"{taken} of {codebooks} codebooks{rate}" if taken != codebooks else f"{codebooks} codebooks{rate}"

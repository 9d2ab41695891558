"""The run configuration: one YAML file, every key checked before anything starts.

Sections are the rooms of a run: `corpus`, `teacher`, `quantizer`, `extract`, `table`, `student`, `distill`,
`cluster`, `storage`. Unknown keys, wrong types and impossible combinations are refused with the key's path.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from mvqkd.models.students.conformer import StudentConfig
from mvqkd.workers.corpus.config import CorpusConfig
from mvqkd.workers.distill.settings import DistillConfig
from mvqkd.workers.section import Section
from mvqkd.workers.teacher import TeacherConfig

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """The run file or an override is wrong; the message holds the key's path and a remedy."""


class QuantizerConfig(Section):
    """The multi-codebook quantizer and the sample that it is trained on."""

    num_codebooks: Annotated[int, Field(ge=1, le=64)] = 8
    codebook_size: Literal[16, 256] = 256
    method: Literal["lsq", "paper"] = "lsq"
    predictability: Annotated[float, Field(ge=0)] = 0.0015
    ordered: bool = False
    round_frames: PositiveInt = 32_768
    anneal_rounds: PositiveInt = 60
    tolerance: PositiveFloat = 0.001
    phase_one_steps: PositiveInt = 10_000
    phase_two_steps: PositiveInt = 10_000
    batch_size: PositiveInt = 512
    lr: PositiveFloat = 0.005
    sample_hours: PositiveFloat = 20.0
    max_frames: PositiveInt = 400_000
    valid_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    seed: int = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ordered and self.method != "lsq":
            raise ValueError(
                "quantizer.ordered needs quantizer.method lsq: the schedule of the paper knows no order"
            )
        return self


class ExtractConfig(Section):
    """How the corpus is cut into shards and how the actors work."""

    shard_hours: PositiveFloat = 5.0
    batch_seconds: PositiveFloat = 120.0
    decode_threads: PositiveInt = 2
    actors: PositiveInt | Literal["auto"] = "auto"
    gpus_per_actor: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    cpus_per_actor: PositiveFloat = 1.0
    max_attempts: PositiveInt = 3
    shard_timeout_s: PositiveFloat | None = None
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.2


class TableConfig(Section):
    """The index table; its folder is `<storage.root>/table` unless `path` says otherwise."""

    path: str | None = None


class ClusterConfig(Section):
    """The Ray cluster: `local` starts one in this process, `auto` joins the one this process belongs to."""

    address: str = "local"
    num_cpus: PositiveInt | None = None


class StorageConfig(Section):
    """Where all results go: a folder or an `s3://bucket/prefix`. Keys and secrets come from the environment."""

    root: str
    endpoint_url: str | None = None
    region: str | None = None

    @property
    def options(self) -> dict[str, str]:
        """Non-secret options of the object store, for `storage.open_location`."""
        return {k: v for k, v in (("endpoint_url", self.endpoint_url), ("region", self.region)) if v}


class RunConfig(Section, strict=False):
    """One run: everything that `mvqkd` needs to know."""

    corpus: CorpusConfig
    teacher: TeacherConfig
    quantizer: QuantizerConfig = QuantizerConfig()
    extract: ExtractConfig = ExtractConfig()
    table: TableConfig = TableConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    cluster: ClusterConfig = ClusterConfig()
    storage: StorageConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.distill.student_layer > self.student.num_layers:
            raise ValueError(
                f"distill.student_layer {self.distill.student_layer} is beyond the last layer of the student "
                f"(student.num_layers {self.student.num_layers})"
            )
        if self.teacher.dtype == "float16" and self.teacher.device == "cpu":
            raise ValueError(
                "teacher.dtype float16 needs CUDA: use bfloat16 or float32, or another teacher.device"
            )
        longest = self.corpus.max_duration_s
        for key, seconds in (
            ("extract", self.extract.batch_seconds),
            ("distill", self.distill.batch_seconds),
        ):
            if seconds < longest:
                raise ValueError(
                    f"{key}.batch_seconds {seconds} is less than one utterance may last "
                    f"(corpus.max_duration_s {longest}): raise the first or lower the second"
                )
        return self


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, as everybody expects; YAML 1.1 calls it text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply `a.b=c` overrides (values are YAML).

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; all problems at once.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such run file; configs/ holds examples") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a run file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML in UTF-8: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a run file is a mapping of sections, see configs/demo.yaml")
    for override in overrides:
        _apply_override(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _wrong(f"{path}: the run configuration is wrong", error, RunConfig) from error


def load_storage_config(root: str, overrides: Sequence[str] = ()) -> StorageConfig:
    """The storage section for a place named on the command line.

    Raises:
        ConfigError: an override is of another section, or wrong.
    """
    tree: dict[str, Any] = {"storage": {"root": root}}
    for override in overrides:
        _apply_override(tree, override)
    try:
        return _StorageOnly.model_validate(tree).storage
    except ValidationError as error:
        problem = "only storage.endpoint_url and storage.region can be set here"
        raise _wrong(problem, error, _StorageOnly) from error


class _StorageOnly(Section):
    storage: StorageConfig


def _wrong(what: str, error: ValidationError, model: type[Section]) -> ConfigError:
    problems = "\n".join(f"  {_explain(problem, model)}" for problem in error.errors())
    return ConfigError(f"{what}:\n{problems}")


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {override}: write it as section.key=value")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from error
    *sections, last = key.split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override}: {section} is not a section")
        node = child
    node[last] = value


def _explain(problem: Any, model: type[Section]) -> str:
    """One line for one pydantic error: the key's path, what is wrong, what to do."""
    # A union adds the name of the branch that was tried to the path; that is no key.
    path = ".".join(
        p for p in map(str, problem["loc"]) if p not in ("int", "float") and not set(p) & set("[-")
    )
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        known = _keys_at(model, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if kind == "missing":
        return f"{path}: is missing; add it to the run file or pass --set {path}=..."
    if kind == "value_error":
        return f"{path or 'run'}: {message.removeprefix('Value error, ')}"
    return f"{path}: {message[0].lower()}{message[1:]}, not {problem['input']!r}"


def _keys_at(model: type[Section], location: Sequence[Any]) -> list[str]:
    """Known keys of the section at a path."""
    section: Any = model
    for part in location:
        section = section.model_fields[part].annotation
    return (
        list(section.model_fields) if hasattr(section, "model_fields") else [f.name for f in fields(section)]
    )

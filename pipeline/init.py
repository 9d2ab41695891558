"""`mvqkd init`: a commented run file for a corpus and a teacher, with what can be seen of both."""

import gzip
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.run_file import config_from_text
from mvqkd.storage.errors import StorageError
from mvqkd.storage.location import open_location

WAVEFORM_FAMILIES = ("hubert", "wavlm", "wav2vec2", "data2vec-audio")
_MANIFEST = (".jsonl", ".jsonl.gz")
_SHAR_CUTS = re.compile(r"cuts\.\d+\.jsonl(\.gz)?")
_TEST_NAMES = ("test", "test-clean", "eval", "dev", "dev-clean", "valid")
_PLAIN = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_./:@+-]*")


@dataclass(frozen=True, kw_only=True)
class FoundCorpus:
    """A corpus as the keys of the run file name it; `note` says what was seen."""

    format: str
    root: str | None
    train: str
    test: str | None
    note: str


@dataclass(frozen=True, kw_only=True)
class FoundTeacher:
    """A teacher, what was seen of it, and the layer that is suggested (None for all)."""

    path: str
    note: str
    layer: int | None
    layer_note: str
    normalize_note: str


def write_run_file(corpus: str, teacher: str, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write the run file; returns what stands in it.

    Args:
        corpus: a folder with `transcripts.tsv`, a Lhotse Shar folder (or one of them for each part), or a cut manifest.
        teacher: the folder of a checkpoint, or its name on the hub.
        out: the file; one that is there is kept unless `force`.

    Raises:
        ConfigError: the corpus is of no known kind, the teacher's folder holds no checkpoint, or the file is there.
        OSError: the file cannot be written.
    """
    out = out.expanduser()
    if out.exists() and not force:
        raise ConfigError(
            f"{out}: is there already; give another name with --out, or --force to write over it"
        )
    found, model = find_corpus(corpus), find_teacher(teacher)
    text = _text(found, model, storage=f"runs/{_short_name(corpus)}")
    config = config_from_text(text, out)
    with out.open("w" if force else "x", encoding="utf-8") as file:
        file.write(text)
    return {
        "run_file": str(out),
        "corpus": {"format": found.format, "train": found.train, "test": found.test, "found": found.note},
        "teacher": {"path": model.path, "layer": model.layer, "found": model.note},
        "storage": config.storage.root,
        "next": f"mvqkd plan {out}",
    }


def find_corpus(where: str) -> FoundCorpus:
    """What kind of corpus lies there and what its parts are called. Raises ConfigError if it is none."""
    if where.endswith(_MANIFEST):
        return _manifest(where)
    location = open_location(where)
    path = location.url
    try:
        names = set(location.list())
    except StorageError as error:
        raise ConfigError(str(error)) from error
    if "transcripts.tsv" in names:
        return _folder(path, location.read_bytes("transcripts.tsv"))
    if any(_SHAR_CUTS.fullmatch(name) for name in names):
        root, _, name = path.rpartition("/")
        return FoundCorpus(format="shar", root=root or "/", train=name, test=None, note="one Shar folder")
    parts = _shar_parts(Path(path)) if location.is_local else []
    if parts:
        train, test = _choose_parts(parts)
        note = f"Shar folders {', '.join(parts)}"
        return FoundCorpus(format="shar", root=path, train=train, test=test, note=note)
    manifests = sorted(name for name in names if name.endswith(_MANIFEST))
    hint = f"name one of its manifests, such as {path}/{manifests[0]}" if manifests else "check the path"
    raise ConfigError(
        f"{where}: no corpus here: neither transcripts.tsv, nor a Lhotse Shar folder (cuts.000000.jsonl.gz); {hint}"
    )


def _folder(root: str, transcripts: bytes) -> FoundCorpus:
    lines = transcripts.decode("utf-8-sig", errors="replace").splitlines()[1:]
    counts = Counter(fields[1] for line in lines if len(fields := line.split("\t")) > 1)
    if not counts:
        raise ConfigError(
            f"{root}/transcripts.tsv: holds no utterance; see docs/configuration.md for its columns"
        )
    train, test = _choose_parts([name for name, _ in counts.most_common()])
    note = "splits: " + ", ".join(f"{name} ({count} utterances)" for name, count in sorted(counts.items()))
    return FoundCorpus(format="folder", root=root, train=train, test=test, note=note)


def _manifest(where: str) -> FoundCorpus:
    folder, _, name = where.rpartition("/")
    location = open_location(folder or ".")
    if not location.exists(name):
        raise ConfigError(f"{location.full_url(name)}: no such manifest; check the path")
    note = "one manifest of cuts; paths of its audio that are relative are taken as below root"
    root = _root_of_audio(Path(location.url), name) if location.is_local else None
    train = name if root is None else str(Path(location.url) / name)
    return FoundCorpus(format="cuts", root=root or location.url, train=train, test=None, note=note)


def _root_of_audio(folder: Path, name: str) -> str | None:
    """Where the relative paths of a manifest's audio begin, if that is not the manifest's own folder."""
    opened = gzip.open if name.endswith(".gz") else open
    try:
        with opened(folder / name, "rt", encoding="utf-8") as file:
            source = json.loads(file.readline())["recording"]["sources"][0]["source"]
        first = Path(source)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError):
        return None  # `mvqkd plan` names the line and what is wrong with it
    if first.is_absolute() or "://" in source or (folder / first).exists():
        return None
    return next((str(root) for root in (folder.parent, Path.cwd()) if (root / first).exists()), None)


def _shar_parts(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        part.name
        for part in folder.iterdir()
        if part.is_dir() and any(_SHAR_CUTS.fullmatch(file.name) for file in part.glob("cuts.*"))
    )


def _choose_parts(names: list[str]) -> tuple[str, str | None]:
    """The part to train on, which is called so or comes first, and one to test on if a name says so."""
    train = "train" if "train" in names else names[0]
    others = [name for name in names if name != train]
    return train, next((name for name in _TEST_NAMES if name in others), None)


def find_teacher(where: str) -> FoundTeacher:
    """What the checkpoint's files say, or for a name on the hub nothing. Raises ConfigError for a folder without."""
    folder = Path(where).expanduser()
    if not folder.is_dir():
        if "://" not in where and (where.startswith(("/", ".", "~")) or where.count("/") > 1):
            raise ConfigError(
                f"{where}: no such folder; give the folder of a checkpoint, or its name on the hub"
            )
        return FoundTeacher(
            path=where,
            note="not looked at: it lies elsewhere",
            layer=None,
            layer_note="transformer layers to compute; null is all, three quarters of them are a good start",
            normalize_note="what the checkpoint says",
        )
    config = _json_of(folder / "config.json")
    family = config.get("model_type")
    layers = config.get("encoder_layers" if family == "whisper" else "num_hidden_layers")
    if family not in (*WAVEFORM_FAMILIES, "whisper") or not isinstance(layers, int) or layers < 1:
        raise ConfigError(
            f"{folder / 'config.json'}: model_type {family!r} with {layers!r} layers is no teacher that is known; "
            f"these are: {', '.join(WAVEFORM_FAMILIES)}, whisper"
        )
    has_preprocessor = (folder / "preprocessor_config.json").is_file()
    preprocessor = _json_of(folder / "preprocessor_config.json") if has_preprocessor else {}
    rate = preprocessor.get("sampling_rate", 16_000)
    if family == "whisper":
        layer, why = max(1, layers // 2), "later ones suffer from short windows, see docs/teachers.md"
    else:
        layer, why = max(1, layers * 3 // 4), "three quarters up, as in the paper; try others"
    return FoundTeacher(
        path=str(folder.absolute()),
        note=f"{family}, {layers} layers, {rate} Hz",
        layer=layer,
        layer_note=f"of {layers}; {why}",
        normalize_note=(
            "what the checkpoint says"
            if has_preprocessor or family == "whisper"
            else "there is no preprocessor_config.json that says it: set true or false"
        ),
    )


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a checkpoint's folder has it"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); download the checkpoint again") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a JSON object; download the checkpoint again")
    return content


def _short_name(where: str) -> str:
    name = where.rstrip("/").rpartition("/")[2].partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "run"


def _yaml(value: str | int | None) -> str:
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    plain = _PLAIN.fullmatch(value) and not value.endswith(":") and value.lower() != "null"
    return value if plain else json.dumps(value, ensure_ascii=False)


def _comment(text: str) -> str:
    """Text that stays on its line, whatever a name in it holds."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(corpus: FoundCorpus, teacher: FoundTeacher, *, storage: str) -> str:
    test_note = (
        "for recognition; null for none" if corpus.test else "nothing to recognize; name a part to test on"
    )
    return f"""\
# A run of MVQ-KD, written by `mvqkd init`. All keys: docs/configuration.md. The stages, or `run` for all of them:
#   mvqkd plan | fit | extract | distill | decode | run THIS_FILE
# A key that is left out, or commented out as below, has the value that stands here.
corpus:  # {_comment(corpus.note)}
  format: {corpus.format}
  root: {_yaml(corpus.root)}
  train: {_yaml(corpus.train)}
  test: {_yaml(corpus.test)}  # {test_note}
  # max_duration_s: 30.0  # longer utterances are left out
  # min_duration_s: 0.1
teacher:  # {_comment(teacher.note)}
  path: {_yaml(teacher.path)}
  layer: {_yaml(teacher.layer)}  # {_comment(teacher.layer_note)}
  # dtype: float32  # or bfloat16, or float16 (on GPUs): faster
  # normalize: null  # zero mean and unit variance of each waveform; null: {teacher.normalize_note}
  # revision: null  # commit or tag of a teacher on the hub; give one, so that all workers get the same weights
quantizer:
  # num_codebooks: 8  # bytes for each teacher frame, 50 frames a second
  # sample_hours: 20.0  # audio that it is fitted on, drawn from all over the corpus
  # max_seconds: null  # a time limit of the fit
extract:
  # shard_hours: 5.0  # audio in each file of the table: what is done again after a failure
  # batch_seconds: auto  # or a number, never below corpus.max_duration_s
  # actors: auto  # one for each GPU, or for each cpus_per_actor CPUs
student:
  # encoder_dim: 144
  # num_layers: 6
  # units: char  # or sentencepiece, then also vocab_size
distill:
  # loss_scale: 0.1  # weight of the codebook loss; 0 is no distillation
  # student_layer: 3  # of student.num_layers; predicts the codes
  # epochs: 30
  # batch_seconds: 120.0
  # lr: 1.0e-3
# Without this section there are two, mvqkd and baseline, of which the second trains without codes.
# students:
#   baseline: {{distill: {{loss_scale: 0.0}}}}
#   mvqkd: {{}}
cluster:
  # address: local  # a Ray on this machine; auto or host:port joins a cluster, none does without Ray
storage:
  root: {_yaml(storage)}  # or s3://bucket/prefix; every worker has to reach it
"""

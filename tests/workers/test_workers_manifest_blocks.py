"""A manifest in blocks of lines, and its lines in several processes: the same lines, the same plan."""

import gzip
import json
from pathlib import Path

import pytest
from s3_server import S3Server
from workers_fakes import make_cuts
from workers_kills import kill_myself

from mvqkd.storage.location import open_location
from mvqkd.workers.corpus import lines as lines_module
from mvqkd.workers.corpus.blocks import read_blocks
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.corpus.files import read_lines
from mvqkd.workers.cuts import Planned, Refused, planned
from mvqkd.workers.planner import make_plan


@pytest.fixture
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small manifest is given to other processes."""
    monkeypatch.setattr("mvqkd.workers.corpus.blocks.BLOCK_BYTES", 8000)
    monkeypatch.setattr("mvqkd.workers.corpus.blocks._READ_BYTES", 4000)
    monkeypatch.setattr(lines_module, "BLOCKS_HERE", 1)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvqkd.workers.corpus.blocks.BLOCK_BYTES", 50)
    monkeypatch.setattr("mvqkd.workers.corpus.blocks._READ_BYTES", 7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "a\nb\n\n \nc",
        "a\r\nb\rc\r\r\nd\r",
        "\ufeffa\u2028b\x0bc\x85d\n\ufeffe",
        "x" * 400 + "\r\n" + "y" * 49 + "\r" + "z" * 99 + "\n\n",
        "\r\n".join("é" * n for n in range(60)),
        "\r".join("é" * n for n in range(60)),
    ],
)
def test_lines_are_those_of_a_text_file(tmp_path: Path, name: str, text: str) -> None:
    path, data = tmp_path / name, text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = [pair for block in read_blocks(str(path), {}) for pair in block.lines()]
    assert found == [
        (number, line.rstrip("\n")) for number, line in read_lines(str(path), {}) if line.strip()
    ]


@pytest.mark.usefixtures("small_blocks")
def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"{}\n" * 40 + b"\xff\n" + b"{}\n")
    with pytest.raises(CorpusError, match=r"c.jsonl:41: cannot be read .*utf-8.*damaged"):
        [list(block.lines()) for block in read_blocks(str(path), {})]


@pytest.mark.usefixtures("small_blocks")
def test_a_file_that_ends_too_early_is_named_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    packed = gzip.compress("".join(f'{{"n": {n * 7919 % 1000}}}\n' for n in range(500)).encode())
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(CorpusError, match=r"c.jsonl.gz:\d\d+: cannot be read .*end-of-stream.*damaged"):
        list(read_blocks(str(path), {}))


def write_mixed(folder: Path, count: int, *, mixed: bool = True) -> Corpus:
    """A manifest of usual cuts; if mixed, also of such with custom fields, transforms, too long and torn ones."""
    (cut,) = make_cuts(folder / "audio", [0.5])
    cut.recording.sources[0].source = "audio/u000.wav"
    data = cut.to_dict()
    rows = []
    for number in range(count):
        row = json.loads(json.dumps(data)) | {"id": f"c{number:05d}"}
        kind = number % 10 if mixed else 0
        if kind == 3:
            row["custom"] = {"snr": number / 7}
        elif kind == 5:
            row["duration"] = 0.5 + number
        elif kind == 7:
            row = cut.perturb_speed(0.9).to_dict() | {"id": row["id"]}
        line = json.dumps(row)
        rows.append(line[:-9] if kind == 9 else line)
    (folder / "c.jsonl").write_text("\n".join(rows) + "\n")
    config = CorpusConfig(format="cuts", root=str(folder), train="c.jsonl")
    return Corpus(config, sample_rate_hz=16_000)


def test_what_is_planned_is_what_the_cuts_say(tmp_path: Path) -> None:
    corpus = write_mixed(tmp_path, 40)
    cuts = [c if isinstance(c, Refused) else planned(c, root=corpus.root) for c in corpus.cuts("train")]
    assert list(corpus.planned("train")) == cuts
    assert [isinstance(one, Refused) for one in cuts].count(True) == 8


@pytest.mark.usefixtures("many_blocks")
def test_the_plan_is_the_same_whatever_the_number_of_processes(tmp_path: Path) -> None:
    corpus = write_mixed(tmp_path, 300)
    files = []
    for processes in (1, 2):
        location = open_location(str(tmp_path / f"plan-{processes}"))
        plan = make_plan(
            corpus.planned("train", processes=processes),
            location,
            shard_hours=10 / 3600,
            settings={},
            root=corpus.root,
        )
        assert (plan.num_cuts, plan.num_refused) == (240, 60)
        files.append({name: location.read_bytes(name) for name in location.list()})
    assert files[0] == files[1]


@pytest.mark.usefixtures("many_blocks")
def test_a_process_that_is_killed_ends_the_planning_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "_do", kill_myself)
    corpus = write_mixed(tmp_path, 100, mixed=False)
    with pytest.raises(CorpusError, match=r"c.jsonl: a process that parses it was ended from outside"):
        list(corpus.planned("train", processes=2))


@pytest.mark.usefixtures("many_blocks")
def test_a_manifest_in_s3_is_planned_in_processes(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = write_mixed(tmp_path, 60, mixed=False)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    root = f"s3://{s3_server.bucket}/blocks"
    options = {"endpoint_url": s3_server.endpoint_url, "region": "us-east-1"}
    place = open_location(root, options=options)
    place.replace("c.jsonl.gz", gzip.compress((tmp_path / "c.jsonl").read_bytes()))
    config = CorpusConfig(format="cuts", root=root, train="c.jsonl.gz")
    there = list(Corpus(config, sample_rate_hz=16_000, options=options).planned("train", processes=2))
    here = list(local.planned("train"))
    assert [x for x in there if isinstance(x, Planned)] == [x for x in here if isinstance(x, Planned)]
    assert len(there) == len(here) == 60

"""Plans over time: a corpus that moved, plans of an earlier version, damaged ones, and how fast they are read."""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lhotse import MonoCut
from workers_fakes import make_cuts, write_manifest

from mvqkd.storage.artifacts import write_json
from mvqkd.storage.location import Location, open_location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig
from mvqkd.workers.cuts import cut_to_json
from mvqkd.workers.plan import Plan, PlanError, read_plan, read_shard_cuts
from mvqkd.workers.planner import make_plan

SHARD_HOURS = 0.8 / 3600


def write_corpus(root: Path) -> Path:
    """Five cuts; one of them ends a hundredth of a second after its recording, another one was perturbed."""
    cuts = make_cuts(root / "audio", [0.5, 0.4, 0.3, 0.6, 0.2], texts=["A CAT"])
    cuts[3].duration = 0.61
    cuts[4] = cuts[4].perturb_speed(0.9)
    for cut in cuts:
        source = cut.recording.sources[0]
        source.source = str(Path(source.source).relative_to(root))
    write_manifest(root / "c.jsonl", cuts)
    return root


def corpus_at(root: object) -> Corpus:
    return Corpus(CorpusConfig(format="cuts", root=str(root), train="c.jsonl"), sample_rate_hz=16_000)


def plan_at(root: object, folder: Path, *, reuse: bool = True) -> Plan:
    corpus = corpus_at(root)
    return make_plan(
        corpus.cuts("train"),
        open_location(str(folder)),
        shard_hours=SHARD_HOURS,
        settings=corpus.config.plan_settings("train", sample_rate_hz=corpus.sample_rate_hz),
        root=corpus.root,
        reuse=reuse,
    )


def names(plan: Plan) -> list[str]:
    return [shard.name("contract") for shard in plan.shards]


def write_version_1(root: Path, folder: Path) -> list[str]:
    """A plan as the version before wrote it: full paths, no version; returns the digests of its shards."""
    cuts = make_cuts(root / "audio", [0.5, 0.4, 0.3, 0.6, 0.2], texts=["A CAT"])
    cuts[3].duration = 0.61
    cuts[4] = cuts[4].perturb_speed(0.9)
    location = open_location(str(folder))
    shards = []
    for position, numbers in enumerate(([0], [1, 2], [3], [4])):
        text = "".join(
            json.dumps(cuts[n].to_dict(), ensure_ascii=False, separators=(",", ":")) + "\n" for n in numbers
        ).encode()
        digest = hashlib.sha256(text).hexdigest()
        path = f"cuts-{position:06d}-{digest[:12]}.jsonl.gz"
        location.write_once(path, gzip.compress(text, mtime=0))
        hours = sum(cuts[n].duration for n in numbers) / 3600
        shards.append(
            {"position": position, "path": path, "digest": digest, "num_cuts": len(numbers), "hours": hours}
        )
    corpus = {
        "format": "cuts", "root": f"{root}/", "train": "c.jsonl", "min_duration_s": 0.1, "max_duration_s": 30.0,
        "channel": None, "allow_upsampling": False,
    }  # fmt: skip
    settings = {"corpus": corpus, "part": "train", "shard_hours": SHARD_HOURS}
    location.replace("refused.jsonl", b"")
    write_json(location, "plan.json", {"settings": settings, "num_refused": 0, "shards": shards})
    return [str(shard["digest"]) for shard in shards]


def loaded(plan: Plan, root: object) -> list[int]:
    load = AudioLoader(16_000, root=str(root))
    return [load(cut).numel() for shard in plan.shards for cut in read_shard_cuts(plan.location, shard)]


def test_a_corpus_that_moved_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_corpus(tmp_path / "here")
    first = plan_at(root, tmp_path / "plan")
    before = {p.name: p.read_bytes() for p in (tmp_path / "plan").iterdir() if p.name.startswith("cuts-")}
    assert str(tmp_path) not in gzip.decompress(next(iter(before.values()))).decode()
    assert "root" not in json.dumps(first.settings) and str(tmp_path) not in json.dumps(first.settings)
    shutil.move(root, tmp_path / "there")
    moved = plan_at(tmp_path / "there", tmp_path / "plan")
    assert moved.shards == first.shards
    assert before == {
        p.name: p.read_bytes() for p in (tmp_path / "plan").iterdir() if p.name.startswith("cuts-")
    }
    assert loaded(moved, tmp_path / "there") == [8000, 6400, 4800, 9600, 3556]
    # A slash at its end, the home folder and a relative root say the same; nothing is read again.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there/c.jsonl").unlink()
    for same in (f"{tmp_path}/there/", "~/there", "there", "./there/"):
        assert plan_at(same, tmp_path / "plan") == moved


def test_another_corpus_at_another_place_is_another_plan(tmp_path: Path) -> None:
    first = plan_at(write_corpus(tmp_path / "here"), tmp_path / "plan")
    other = write_corpus(tmp_path / "other")
    lines = (other / "c.jsonl").read_text().splitlines(keepends=True)
    (other / "c.jsonl").write_text("".join(lines[1:]))
    changed = plan_at(other, tmp_path / "plan")
    assert (first.num_cuts, changed.num_cuts) == (5, 4) and not set(names(first)) & set(names(changed))


def test_a_plan_of_version_1_is_taken_as_it_is(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "here")
    digests = write_version_1(root, tmp_path / "plan")
    (root / "c.jsonl").unlink()
    plan = plan_at(root, tmp_path / "plan")
    assert plan.version == 1 and [shard.digest for shard in plan.shards] == digests
    load = AudioLoader(16_000)  # its paths are full
    assert [load(cut).numel() for shard in plan.shards for cut in read_shard_cuts(plan.location, shard)] == [
        8000, 6400, 4800, 9760, 3556,
    ]  # fmt: skip


@pytest.mark.parametrize("moved", [False, True])
def test_shards_keep_the_names_of_version_1(tmp_path: Path, moved: bool) -> None:
    root = write_corpus(tmp_path / "here")
    digests = write_version_1(root, tmp_path / "plan")
    if moved:
        root = Path(shutil.move(root, tmp_path / "there"))
    plan = plan_at(root, tmp_path / "plan", reuse=moved)
    assert plan.version == 3 and [shard.digest for shard in plan.shards] == digests
    assert all(shard.content != shard.digest for shard in plan.shards)
    assert loaded(plan, root) == [8000, 6400, 4800, 9600, 3556]
    # And from then on.
    assert plan_at(root, tmp_path / "plan", reuse=False) == plan == plan_at(root, tmp_path / "plan")
    # A shard that is not of the same cuts gets a name of its own, the others keep theirs.
    lines = (root / "c.jsonl").read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("A CAT", "A DOG")
    (root / "c.jsonl").write_text("".join(lines))
    changed = [shard.digest for shard in plan_at(root, tmp_path / "plan", reuse=False).shards]
    assert [new == old for new, old in zip(changed, digests, strict=True)] == [True, False, True, True]


def test_the_same_cuts_in_a_new_plan_folder_have_the_same_names(tmp_path: Path) -> None:
    root = write_corpus(tmp_path / "here")
    assert names(plan_at(root, tmp_path / "a")) == names(plan_at(root, tmp_path / "b"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"settings": {}', "plan.json: not a plan (.*not JSON"),
        (b"[]", "plan.json: not a plan"),
        (b"\xff\xfe", "plan.json: not a plan"),
        (b'{"version": 2, "settings": {}, "shards": [{"position": 1}]}', "plan.json: not a plan"),
        (b'{"version": 99}', "plan.json: of version 99, this program reads up to 3"),
    ],
)
def test_a_damaged_plan_is_an_error_until_it_is_made_again(
    tmp_path: Path, content: bytes, words: str
) -> None:
    root = write_corpus(tmp_path / "here")
    plan = plan_at(root, tmp_path / "plan")
    (tmp_path / "plan/plan.json").write_bytes(content)
    for read in (lambda: read_plan(plan.location), lambda: plan_at(root, tmp_path / "plan")):
        with pytest.raises(PlanError, match=words.replace("(", r"\(", 1)) as caught:
            read()
        assert "run `mvqkd plan` again" in str(caught.value)
    assert plan_at(root, tmp_path / "plan", reuse=False) == plan


def test_cuts_that_lost_their_text_are_counted_and_listed(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4])
    windows = list(cuts[0].cut_into_windows(0.3))
    location = open_location(str(tmp_path / "plan"))
    plan = make_plan([*windows, cuts[1]], location, shard_hours=1.0, settings={})
    assert (plan.num_cuts, plan.num_text_dropped, read_plan(location)) == (3, 2, plan)
    lines = [json.loads(line) for line in location.read_bytes("text_dropped.jsonl").decode().splitlines()]
    assert [line["cut_id"] for line in lines] == [window.id for window in windows]
    assert "lasts from 0.00 s to 0.50 s of a cut of 0.30 s" in lines[0]["reason"]


def test_cuts_are_written_as_lhotse_writes_them(tmp_path: Path) -> None:
    cuts = make_cuts(tmp_path, [0.5, 0.4])
    plan = make_plan(cuts, open_location(str(tmp_path / "plan")), shard_hours=1.0, settings={})
    found: list[MonoCut] = list(read_shard_cuts(plan.location, plan.shards[0]))
    assert [cut_to_json(cut) for cut in found] == [cut_to_json(cut) for cut in cuts]


def large_plan(location: Location) -> None:
    shards = [
        {
            "position": number, "path": f"cuts-{number:06d}-0123456789ab.jsonl.gz", "digest": f"{number:064x}",
            "content": f"{number:064x}", "num_cuts": 1000, "hours": 4.0,
        }
        for number in range(20_000)
    ]  # fmt: skip
    content = {
        "version": 2,
        "settings": {},
        "root": None,
        "num_refused": 0,
        "num_text_dropped": 0,
        "shards": shards,
    }
    write_json(location, "plan.json", content)


def test_a_plan_of_20000_shards_is_read_at_once_and_without_torch(tmp_path: Path) -> None:
    location = open_location(str(tmp_path))
    large_plan(location)
    # In a process of its own: what other tests have left in this one's memory would be looked through too.
    code = (
        "import json, sys, time\n"
        "from mvqkd.storage.location import open_location\n"
        "from mvqkd.workers.plan import read_plan\n"
        "began = time.process_time()\n"
        "plan = read_plan(open_location(sys.argv[1]))\n"
        "seconds = time.process_time() - began\n"
        "loaded = sorted({'torch', 'lhotse', 'ray', 'pyarrow'} & set(sys.modules))\n"
        "print(json.dumps([len(plan.shards), plan.num_cuts, plan.hours, seconds, loaded]))\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    *figures, seconds, loaded = json.loads(found.stdout)
    assert figures == [20_000, 20_000_000, 80_000.0] and loaded == []
    assert seconds < 1.0

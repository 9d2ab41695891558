"""Fuzzing of corpora: whatever stands in a manifest, a TSV or a Shar folder, planning and loading end in a refusal that
names its place or in the right answer, and what is good is always planned."""

import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from mvqkd.storage.contract import TableContract
from mvqkd.storage.location import open_location
from mvqkd.storage.rows import IndexRow, rows_to_arrow
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.corpus.corpus import Corpus, CorpusConfig, CorpusError
from mvqkd.workers.cuts import (
    UtteranceError,
    cut_from_json,
    cut_to_json,
    identity,
    speaker_of,
    text_of,
    text_problem,
)
from mvqkd.workers.plan import PlanError, read_plan, read_refused, read_shard_cuts
from mvqkd.workers.planner import make_plan
from tests.fuzz.json_mutations import mutate, spoil

RATE = 16_000
NUM_CUTS = 5
HEADER = "id\tsplit\tspeaker\ttext\n"
CONTRACT = TableContract(
    teacher_fingerprint="f" * 16,
    teacher_name="fake",
    layer=1,
    quantizer_id="abcdef01",
    num_codebooks=1,
    codebook_size=16,
    frame_rate_hz=50.0,
    frame_offset_s=0.0,
    sample_rate_hz=RATE,
)


class World:
    """A folder with audio, and everything that is checked of a corpus in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cuts = []
        for number in range(NUM_CUTS):
            path = root / f"audio/train/u{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            num_samples = 2400 + 160 * number
            noise = np.random.default_rng(number).normal(0, 0.1, num_samples).astype(np.float32)
            soundfile.write(path, noise, RATE)
            self.cuts.append(self._cut(f"u{number}", num_samples))
        self.cuts[1] = self.cuts[1].perturb_volume(0.5)
        self.cuts[2].custom = {"snr": 3.5, "tags": ["a"]}
        self.cuts[3] = self.cuts[3].perturb_speed(1.1)
        for cut, number in zip(self.cuts, range(NUM_CUTS), strict=True):
            cut.id = f"u{number}"
        self.objects = [json.loads(cut_to_json(cut)) for cut in self.cuts]
        self.lengths = [AudioLoader(RATE, root=str(root))(cut).numel() for cut in self.cuts]

    def _cut(self, name: str, num_samples: int) -> MonoCut:
        source = AudioSource("file", [0], f"audio/train/{name}.wav")
        recording = Recording(name, [source], RATE, num_samples, num_samples / RATE)
        supervision = SupervisionSegment(name, name, 0.0, recording.duration, text="A CAT", speaker="ann")
        return MonoCut(name, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording)

    def check(self, config: CorpusConfig, good: dict[str, int], num_lines: int | None, place: str) -> None:
        """Plan, read and load the corpus.

        Args:
            config: of the corpus.
            good: ids that have to be planned, with their numbers of samples.
            num_lines: how many utterances there are, if it is known.
            place: what every refusal names, if it does not name the cut.
        """
        plan_folder = self.root / "plan"
        shutil.rmtree(plan_folder, ignore_errors=True)
        location = open_location(str(plan_folder))
        corpus = Corpus(config, sample_rate_hz=RATE)
        try:
            plan = make_plan(
                corpus.cuts("train"),
                location,
                shard_hours=0.3 / 3600,
                settings=config.plan_settings("train", sample_rate_hz=RATE),
                root=corpus.root,
            )
        except PlanError as error:
            assert "ids must be unique" in str(error), error
            return
        except CorpusError as error:
            assert place in str(error), error
            return
        assert read_plan(location) == plan
        refused = read_refused(location)
        assert len(refused) == plan.num_refused
        for one in refused:
            assert place in one.reason or one.cut_id, one
        if num_lines is not None:
            assert plan.num_cuts + plan.num_refused == num_lines, (plan.num_cuts, refused)
        load = AudioLoader(RATE, root=str(self.root))
        found: dict[str, int | None] = {}
        for shard in plan.shards:
            for cut in read_shard_cuts(location, shard):
                found[cut.id] = self._use(cut, load)
        for cut_id, num_samples in good.items():
            assert found.get(cut_id) == num_samples, (cut_id, found, refused)

    def _use(self, cut: MonoCut, load: AudioLoader) -> int | None:
        """Do to a planned cut what extraction does; its number of samples, None where it cannot be loaded."""
        line = cut_to_json(cut)
        assert cut_to_json(cut_from_json(line)) == line
        text = text_of(cut)
        assert text is None or text_problem(cut) is None
        assert 0.1 <= cut.duration <= 30.0 and cut.start >= -1e-4
        try:
            waveform_T = load(cut)
        except UtteranceError as error:
            assert error.cut_id == cut.id
            return None
        assert waveform_T.dtype == torch.float32 and bool(waveform_T.isfinite().all())
        assert abs(waveform_T.numel() - cut.duration * RATE) <= 1.01
        row = IndexRow(
            **identity(cut, waveform_T.numel()),  # type: ignore[typeddict-item]
            cut_id=cut.id,
            num_frames=1,
            rrl=0.1,
            speaker=speaker_of(cut),
            text=text,
            codes=np.zeros((1, 1), dtype=np.uint8),
            cut=line,
        )
        assert rows_to_arrow([row], CONTRACT).num_rows == 1
        return waveform_T.numel()

    def good(self, but: set[int]) -> dict[str, int]:
        """Ids and lengths of all cuts but some."""
        return {f"u{n}": length for n, length in enumerate(self.lengths) if n not in but}


def check_manifest(world: World, data: st.DataObject) -> None:
    """One or two lines of a cut manifest are changed in a field or two, or torn."""
    draw = data.draw
    bad = draw(st.sets(st.integers(0, NUM_CUTS - 1), min_size=1, max_size=2))
    lines = []
    for number, original in enumerate(world.objects):
        cut = copy.deepcopy(original)
        if number in bad:
            for _ in range(draw(st.integers(1, 3))):
                cut = mutate(cut, draw)
        line = json.dumps(cut, ensure_ascii=draw(st.booleans()) if number not in bad else True)
        if number in bad and draw(st.integers(0, 5)) == 0:
            line = spoil(line, draw)
        lines.append(line)
    (world.root / "c.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    blank = sum(not line.strip() for line in lines)
    config = CorpusConfig(format="cuts", root=str(world.root), train="c.jsonl")
    world.check(config, world.good(bad), NUM_CUTS - blank, f"{world.root}/c.jsonl:")


def check_tsv(world: World, data: st.DataObject) -> None:
    """One or two lines of a TSV are changed."""
    draw = data.draw
    bad = draw(st.sets(st.integers(0, NUM_CUTS - 1), min_size=1, max_size=2))
    cell = st.one_of(
        st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=12),
        st.sampled_from(
            ["u0", "u1", "../u1", "/", ".", "a/b", "u1.wav/x", "train", "dev", "\t", "\0", " ", "x" * 300]
        ),
    )
    lines = []
    for number in range(NUM_CUTS):
        fields = [f"u{number}", "train", "ann", "A CAT"]
        if number in bad:
            for _ in range(draw(st.integers(1, 2))):
                fields[draw(st.integers(0, len(fields) - 1))] = draw(cell)
            if draw(st.integers(0, 3)) == 0:
                fields = fields[: draw(st.integers(1, 3))]
        line = "\t".join(fields)
        lines.append(spoil(line, draw) if number in bad and draw(st.integers(0, 3)) == 0 else line)
    (world.root / "transcripts.tsv").write_text(HEADER + "\n".join(lines), encoding="utf-8")
    lengths = {f"u{n}": 2400 + 160 * n for n in range(NUM_CUTS) if n not in bad}
    config = CorpusConfig(format="folder", root=str(world.root))
    world.check(config, lengths, None, f"{world.root}/transcripts.tsv")


def check_shar(world: World, data: st.DataObject) -> None:
    """A line of a Shar folder's cuts or of its recordings is changed."""
    draw = data.draw
    bad = draw(st.integers(0, NUM_CUTS - 1))
    cuts, recordings = [], []
    for number, original in enumerate(world.objects):
        cut = copy.deepcopy(original)
        entry = {"cut_id": cut["id"], "recording": cut.pop("recording")}
        if number == bad:
            if draw(st.booleans()):
                cut = mutate(cut, draw)
            else:
                entry["recording"] = mutate(entry["recording"], draw)
        cuts.append(json.dumps(cut))
        recordings.append(json.dumps(entry))
        if number == bad and draw(st.integers(0, 5)) == 0:
            cuts[-1] = spoil(cuts[-1], draw)
    folder = world.root / "shar"
    folder.mkdir(exist_ok=True)
    (folder / "cuts.000000.jsonl").write_text("\n".join(cuts) + "\n", encoding="utf-8")
    (folder / "recording.000000.jsonl").write_text("\n".join(recordings) + "\n", encoding="utf-8")
    config = CorpusConfig(format="shar", root=str(world.root), train="shar")
    world.check(config, world.good({bad}), None, str(folder))


@contextmanager
def temporary_world() -> Iterator[World]:
    """A world in memory where there is a file system for that."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        yield World(Path(folder))


def run(cases: int, seed: int) -> None:
    """Try so many cases, most of them manifests.

    Raises:
        AssertionError, or whatever the program raised: Hypothesis has printed the case.
    """
    with temporary_world() as world:
        for check, share in ((check_manifest, 0.6), (check_tsv, 0.2), (check_shar, 0.2)):
            _run_one(check, world, max(1, round(cases * share)), seed)


def _run_one(check: Callable[[World, st.DataObject], None], world: World, cases: int, seed: int) -> None:
    @seeded(seed)
    # Without shrinking, which takes minutes where a case is a whole corpus.
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def one(data: st.DataObject) -> None:
        check(world, data)

    one()

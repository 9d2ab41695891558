"""The preflight: how fast one worker is on a sample of this corpus, in what memory, and whether teacher and quantizer
know this kind of audio.
"""

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from lhotse import MonoCut

from mvqkd.models.quantizer import Coder, Quantizer
from mvqkd.storage.location import Location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.ctc_reader import CtcReader, open_ctc_reader, word_error_rate
from mvqkd.workers.cuts import UtteranceError, text_of
from mvqkd.workers.embed import Embedder, EmbedderSettings
from mvqkd.workers.loudness import Loudness, measure_loudness
from mvqkd.workers.quality import Quality, Sums
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.teacher import choose_device

LEAST_AUDIO_S = 120.0
MOST_READ = 200
"""Transcribed utterances that a teacher with a CTC head reads."""
_READING_SHARE = 0.25  # of the time, at most


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a worker found out.

    Attributes:
        hours_per_worker_hour: audio that one worker does in an hour: loading, teacher, and quantizer if there is one.
        measured_s, measured_hours: time and audio it was measured on; warm_up_s is the time before that.
        quantizer_share: of the time.
        peak_memory_bytes: of the process; peak_device_bytes: on a GPU, None without one.
        device: its name.
        utterances, left_out: of the first pass; problems: of the first few that were left out.
        loudness: of the sample; None where nothing of it can be loaded.
        quality: None without a quantizer.
        teacher_wer: of the teacher's own CTC head on `teacher_wer_utterances`; None without a head or texts.
    """

    hours_per_worker_hour: float
    measured_s: float
    measured_hours: float
    warm_up_s: float
    quantizer_share: float
    peak_memory_bytes: int
    peak_device_bytes: int | None
    device: str
    utterances: int
    left_out: int
    problems: list[str]
    loudness: Loudness | None
    quality: Quality | None
    teacher_wer: float | None
    teacher_wer_utterances: int


@dataclass(frozen=True, kw_only=True)
class CalibrateSettings:
    """What a `Calibrator` is built from, in the process where it works.

    Attributes:
        embedder: the teacher and how it is fed.
        quantizer: folder of the fitted one; None where there is none yet.
        seconds: to measure for.
        search: how codes are searched, as of `Coder`.
    """

    embedder: EmbedderSettings
    quantizer: Location | None
    seconds: float
    search: str = "full"

    def build(self) -> "Calibrator":
        """Load the teacher and the quantizer in this process."""
        embedder = self.embedder.build()
        device = choose_device(self.embedder.teacher.device)
        rate_hz = embedder.teacher.info.sample_rate_hz
        return Calibrator(
            embedder=embedder,
            quantizer=None if self.quantizer is None else load_quantizer(self.quantizer)[0].to(device),
            reader=open_ctc_reader(self.embedder.teacher),
            loader=AudioLoader(rate_hz, s3=self.embedder.options, root=self.embedder.root),
            seconds=self.seconds,
            batch_seconds=self.embedder.batch_seconds,
            device=device,
            search=self.search,
        )


class Calibrator:
    """Measures on a sample of the corpus.

    Args:
        embedder: the teacher and how it is fed.
        quantizer: fitted on this teacher's embeddings; None where there is none yet.
        reader: the teacher's CTC head; None where it has none.
        loader: gives waveforms at the teacher's rate.
        seconds: to measure the speed for.
        batch_seconds: of the embedder.
        device: of the teacher.
        search: how codes are searched.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        quantizer: Quantizer | None,
        reader: CtcReader | None,
        loader: AudioLoader,
        seconds: float,
        batch_seconds: float,
        device: torch.device,
        search: str = "full",
    ) -> None:
        self._embedder, self._reader, self._loader = embedder, reader, loader
        self._coder = None if quantizer is None else Coder(quantizer.eval(), search=search)
        self._seconds, self._batch_seconds, self._device = seconds, batch_seconds, device

    def run(
        self,
        sample: Sequence[MonoCut],
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Calibration:
        """Measure on the sample, again and again until the time is over, on two minutes of audio at least; quality on
        the first pass alone.

        Args:
            sample: cuts in an order that has nothing to do with their length.
            last_attempt: makes no difference.
            note: called with `done` and `total` seconds.

        Raises:
            ValueError: no utterance of the sample could be embedded.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        chunks = list(_chunks(sample, seconds=2 * self._batch_seconds))
        warm_up_s = self._warm_up(sample)
        sums = Sums(self._coder)
        least_s = min(LEAST_AUDIO_S, sum(cut.duration for cut in sample))
        began = time.perf_counter()
        for _ in self._passed(cycle(chunks), sums, num_first=len(chunks)):
            elapsed = time.perf_counter() - began
            note({"done": min(elapsed, self._seconds), "total": self._seconds})
            # A figure of a few utterances is none, however slow the worker is.
            if elapsed >= self._seconds and sums.seconds >= least_s:
                break
        sums.code()
        measured_s = time.perf_counter() - began - sums.judging_s
        if not sums.seconds:
            raise ValueError(f"no utterance of the sample could be embedded: {'; '.join(sums.problems)}")
        wer, num_read = self._read(sample)
        on_gpu = self._device.type == "cuda"
        return Calibration(
            hours_per_worker_hour=sums.seconds / measured_s,
            measured_s=measured_s,
            measured_hours=sums.seconds / 3600,
            warm_up_s=warm_up_s,
            quantizer_share=sums.coding_s / measured_s,
            peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            peak_device_bytes=torch.cuda.max_memory_allocated(self._device) if on_gpu else None,
            device=torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            utterances=sums.utterances,
            left_out=sums.left_out,
            problems=sums.problems,
            loudness=measure_loudness(
                sample, self._loader, sample_rate_hz=self._loader.sample_rate_hz, threads=2
            ),
            quality=sums.quality(),
            teacher_wer=wer,
            teacher_wer_utterances=num_read,
        )

    def _warm_up(self, sample: Sequence[MonoCut]) -> float:
        """Seconds for a first batch. The quantizer too: its search is compiled when it is first used."""
        began = time.perf_counter()
        first, sums = next(_chunks(sample, seconds=self._batch_seconds)), Sums(self._coder)
        for _ in self._passed(iter([first]), sums):
            pass
        sums.code()
        return time.perf_counter() - began

    def _passed(self, chunks: Iterator[list[MonoCut]], sums: Sums, *, num_first: int = 1) -> Iterator[None]:
        """Embed and code chunk after chunk; yields after each utterance."""
        for number, chunk in enumerate(chunks):
            before = sums.seconds
            for result in self._embedder(chunk):
                sums.add(result, first_pass=number < num_first)
                yield
            if number >= num_first and sums.seconds == before:
                return  # nothing of it can be embedded, and there is no end to it

    def _read(self, sample: Sequence[MonoCut]) -> tuple[float | None, int]:
        """Word error rate of the teacher's own head, and on how many utterances."""
        if self._reader is None:
            return None, 0
        began, references, texts = time.perf_counter(), [], []
        for cut in sample:
            reference = text_of(cut)
            if not reference or not reference.strip():
                continue
            try:
                waveform = self._loader(cut)
            except UtteranceError:
                continue
            references.append(reference)
            texts.append(self._reader.read(waveform))
            if len(texts) == MOST_READ or time.perf_counter() - began > _READING_SHARE * self._seconds:
                break
        return (word_error_rate(references, texts), len(texts)) if texts else (None, 0)


def _chunks(cuts: Sequence[MonoCut], *, seconds: float) -> Iterator[list[MonoCut]]:
    """Consecutive cuts of about so much audio."""
    chunk: list[MonoCut] = []
    total = 0.0
    for cut in cuts:
        chunk.append(cut)
        total += cut.duration
        if total >= seconds:
            yield chunk
            chunk, total = [], 0.0
    if chunk:
        yield chunk

"""Loading a teacher to see what its embeddings are, for tables that hold them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lhotse import MonoCut

from mvqkd.models.teachers import Teacher
from mvqkd.storage.location import Location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.batch_bound import batch_seconds_on
from mvqkd.workers.embed import EmbedderSettings
from mvqkd.workers.teacher import choose_device, open_teacher
from mvqkd.workers.teacher_record import TeacherRecord, save_teacher


@dataclass(frozen=True, kw_only=True)
class DescribeSettings:
    """What a `Describer` is built from, in the process where it works; see there."""

    embedder: EmbedderSettings
    location: Location
    settings: Mapping[str, Any]

    def build(self) -> "Describer":
        """Load the teacher in this process."""
        torch.set_num_threads(self.embedder.compute_threads)
        teacher = open_teacher(self.embedder.teacher, options=self.embedder.options)
        rate_hz = teacher.info.sample_rate_hz
        return Describer(
            teacher=teacher,
            loader=AudioLoader(rate_hz, s3=self.embedder.options, root=self.embedder.root),
            device=choose_device(self.embedder.teacher.device),
            location=self.location,
            settings=self.settings,
        )


class Describer:
    """Records what a teacher is.

    Args:
        teacher: the loaded teacher.
        loader: gives waveforms at its rate.
        device: of the teacher.
        location: where the record goes.
        settings: of the run, kept in the record.
    """

    def __init__(
        self,
        *,
        teacher: Teacher,
        loader: AudioLoader,
        device: torch.device,
        location: Location,
        settings: Mapping[str, Any],
    ) -> None:
        self._teacher, self._loader, self._device = teacher, loader, device
        self._location, self._settings = location, dict(settings)

    def run(
        self,
        cuts: Sequence[MonoCut],
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> TeacherRecord:
        """Store the record and return it.

        Args:
            cuts: some of the corpus, on whose audio the size of batches is tried.
            last_attempt, note: make no difference.
        """
        record = TeacherRecord(
            teacher=asdict(self._teacher.info),
            settings=self._settings,
            batch_seconds=batch_seconds_on(self._teacher, self._loader, cuts, device=self._device),
        )
        save_teacher(self._location, record)
        return record

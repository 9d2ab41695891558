"""The corpus as a lazy stream of Lhotse cuts, each either usable or refused with a reason.

Nothing here holds more than one cut at a time, so ten million of them cost no memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from lhotse import MonoCut, MultiCut
from lhotse.cut import Cut

from mvqkd.workers.corpus.config import AS_IT_IS, CorpusConfig
from mvqkd.workers.corpus.files import CorpusError
from mvqkd.workers.corpus.folder import read_folder
from mvqkd.workers.corpus.lines import CutLines, planned_lines
from mvqkd.workers.corpus.manifest import read_manifest
from mvqkd.workers.corpus.paths import full_root, under_root
from mvqkd.workers.corpus.shar import read_shar
from mvqkd.workers.corpus.sources import with_full_sources
from mvqkd.workers.corpus.speeds import at_speeds, speed_problem
from mvqkd.workers.corpus.transforms import transforms_problem
from mvqkd.workers.cuts import Planned, Refused, clipped, has_text, planned
from mvqkd.workers.windows import windows_of

TEACHER_FRAME_SHIFT_S = 0.02
"""Of every teacher that is known; a cut may reach beyond its recording by so much at most."""


class Corpus:
    """Reads the cuts of one part (`train` or `test`) of a corpus, in a fixed order.

    Args:
        config: where the corpus is.
        sample_rate_hz: what the teacher takes; audio below it is refused unless `allow_upsampling`.
        options: of the storage section, for `s3://` paths.
        frame_shift_s: of the teacher: a cut that reaches beyond its recording by more is refused, by less is
            clipped to it.
        speeds: at which every cut is taken; a copy at another speed is a cut of its own.
    """

    def __init__(
        self,
        config: CorpusConfig,
        *,
        sample_rate_hz: int,
        options: Mapping[str, str] | None = None,
        frame_shift_s: float = TEACHER_FRAME_SHIFT_S,
        speeds: Sequence[float] = AS_IT_IS,
    ) -> None:
        self.config = config
        self.sample_rate_hz = sample_rate_hz
        self.frame_shift_s = frame_shift_s
        self.speeds = tuple(speeds)
        self.root = full_root(config.root)
        self._options = dict(options or {})

    def cuts(self, part: Literal["train", "test"]) -> Iterator[MonoCut | Refused]:
        """Every cut of the part with full paths, or the reason why it cannot be used.

        Raises:
            CorpusError: the corpus or the part is missing, damaged, or of another kind than `corpus.format`.
            StorageError, OSError: the store broke off while audio was looked at; plan again.
        """
        name = getattr(self.config, part)
        if name is None:
            raise CorpusError(f"corpus.{part} is not set in the run file; name the {part} part there")
        empty = True
        for cut in self._read(name):
            empty = False
            if isinstance(cut, Refused):
                yield cut
            else:
                yield from self.check(cut)
        if empty:
            raise self._nothing_found(part)

    def _nothing_found(self, part: str) -> CorpusError:
        name = getattr(self.config, part)
        return CorpusError(
            f"corpus.{part}: nothing found in {name!r} (corpus.root {self.config.root!r}); check both"
        )

    def planned(self, part: Literal["train", "test"], *, processes: int = 1) -> Iterator[Planned | Refused]:
        """As `cuts`, each as a plan keeps it; the same whatever the number of processes.

        Args:
            part: of the corpus.
            processes: how many parse a large manifest; other corpora are read in this one.

        Raises:
            As `cuts`; CorpusError also where a process is ended from outside.
        """
        name = getattr(self.config, part)
        if self.config.format != "cuts" or name is None:
            for cut in self.cuts(part):
                yield cut if isinstance(cut, Refused) else planned(cut, root=self.root)
            return
        url = under_root(name, self.root)
        empty = True
        lines = CutLines(
            self.config,
            sample_rate_hz=self.sample_rate_hz,
            frame_shift_s=self.frame_shift_s,
            root=self.root,
            speeds=self.speeds,
        )
        for entry in planned_lines(url, self._options, lines, processes=processes):
            empty = False
            yield entry
        if empty:
            raise self._nothing_found(part)

    def _read(self, name: str) -> Iterator[Cut | Refused]:
        if self.config.format == "folder":
            assert self.root is not None, "the configuration has checked it"
            return read_folder(self.root, name, self._options, bare=self.config.window_s is not None)
        url = under_root(name, self.root)
        if self.config.format == "shar":
            return read_shar(url, self._options)
        return read_manifest(url, self._options, recordings=self.config.window_s is not None)

    def check(self, cut: Cut) -> list[MonoCut | Refused]:
        """The cut with full paths and of one channel, its copies or windows, or the reason why it cannot be used."""
        if isinstance(cut, MultiCut):
            cut = self._one_channel(cut)
            if isinstance(cut, Refused):
                return [cut]
        if not cut.has_recording:
            return [
                _refuse(cut, "has no recording; the manifest must name its audio, features alone do not do")
            ]
        problem = self._recording_problem(cut) or self._end_problem(cut)
        if problem is not None:
            return [_refuse(cut, problem)]
        cut = clipped(cut)
        if self.speeds == AS_IT_IS:
            return self._in_length(cut)
        problem = speed_problem(cut)
        if problem is not None:
            return [_refuse(cut, problem)]
        return [one for copy in at_speeds(cut, self.speeds) for one in self._in_length(copy)]

    def _in_length(self, cut: MonoCut) -> list[MonoCut | Refused]:
        """The cut with full paths, its windows, or why it is too short or too long."""
        problem = self._duration_problem(cut)
        if problem is not None:
            return [_refuse(cut, problem)]
        cut.recording = with_full_sources(cut.recording, self.root)
        if cut.duration <= self.config.max_duration_s:
            return [cut]
        assert self.config.window_s is not None, "else it was refused"
        return [*windows_of(cut, window_s=self.config.window_s, overlap_s=self.config.window_overlap_s)]

    def _one_channel(self, cut: MultiCut) -> MonoCut | Refused:
        have = list(cut.channel) if isinstance(cut.channel, list) else [cut.channel]
        channel = have[0] if len(have) == 1 else self.config.channel
        if channel is None:
            return _refuse(
                cut, f"has {len(have)} channels {have}; choose one with corpus.channel, or split it"
            )
        if channel not in have:
            return _refuse(cut, f"has the channels {have}, not corpus.channel {channel}; choose another")
        mono = next(mono for mono in cut.to_mono() if mono.channel == channel)
        mono.id = cut.id
        return mono

    def _end_problem(self, cut: MonoCut) -> str | None:
        """A cut that reaches beyond its recording by more than a frame of the teacher is a mistake."""
        recording = cut.recording
        limit_s = self.frame_shift_s + 1e-6  # a millionth of a second is rounding
        if cut.start < -limit_s:
            return (
                f"starts at {cut.start:.3f} s, before its recording, which starts at 0; correct the manifest"
            )
        end_s = cut.start + cut.duration
        recording_end_s = max(recording.duration, recording.num_samples / recording.sampling_rate)
        if end_s > recording_end_s + limit_s:
            return (
                f"ends at {end_s:.3f} s, after its recording, which ends at {recording_end_s:.3f} s; "
                "correct the manifest"
            )
        return None

    def _duration_problem(self, cut: MonoCut) -> str | None:
        config = self.config
        if cut.duration < config.min_duration_s:
            return (
                f"lasts {cut.duration:.3f} s, less than corpus.min_duration_s {config.min_duration_s:g}; "
                "remove it or lower the limit"
            )
        if cut.duration <= config.max_duration_s:
            return None
        too_long = f"lasts {cut.duration:.2f} s, more than corpus.max_duration_s {config.max_duration_s:g}"
        if has_text(cut):
            return (
                f"{too_long}, and has a text, which nobody can split; cut it at the ends of supervisions (lhotse cut "
                "trim-to-supervisions) or raise the limit"
            )
        if config.window_s is None:
            return f"{too_long}; set corpus.window_s to use it in windows, or raise the limit"
        return None

    def _recording_problem(self, cut: MonoCut) -> str | None:
        recording = cut.recording
        if recording.sampling_rate < self.sample_rate_hz and not self.config.allow_upsampling:
            return (
                f"is sampled at {recording.sampling_rate:g} Hz, the teacher takes {self.sample_rate_hz} Hz; "
                "set corpus.allow_upsampling to use it all the same, or choose a teacher of that rate"
            )
        have = [channel for source in recording.sources for channel in source.channels]
        if have.count(cut.channel) != 1:
            found = (
                "is in two of its sources" if cut.channel in have else f"is not among its recording's {have}"
            )
            return f"is of channel {cut.channel}, which {found}; correct the manifest"
        return transforms_problem(recording) if recording.transforms else None


def _refuse(cut: Cut, reason: str) -> Refused:
    return Refused(cut_id=cut.id, reason=reason, duration_s=cut.duration)


__all__ = ["Corpus", "CorpusConfig", "CorpusError"]

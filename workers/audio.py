"""Audio of cuts: loading with clear errors, decoding ahead in threads, length-sorted batches."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import fsspec
import numpy as np
import torch
from lhotse import MonoCut, Recording
from lhotse.audio import AudioLoadingError, AudioSource, DurationMismatchError
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class AudioError(ValueError):
    """The audio of one cut cannot be used; the message names the cut, the file and the remedy."""

    def __init__(self, cut_id: str, problem: str) -> None:
        super().__init__(f"{cut_id}: {problem}")
        self.cut_id, self.problem = cut_id, problem

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str]]:
        return type(self), (self.cut_id, self.problem)


class AudioLoader:
    """Loads the waveform of a cut at one sampling rate.

    Args:
        sample_rate_hz: audio of another rate is resampled.
        s3: fsspec arguments for `s3://` recordings.
    """

    def __init__(self, sample_rate_hz: int, *, s3: dict[str, object] | None = None) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._s3 = s3 or {}

    def __call__(self, cut: MonoCut) -> Tensor:
        """float32 waveform (num_samples,).

        Raises:
            AudioError: the audio is missing, corrupt, empty, shorter than its manifest says, or holds NaN.
        """
        where = ", ".join(str(source.source) for source in cut.recording.sources if source.type != "memory")
        try:
            audio_CT = self._fetched(cut).resample(self.sample_rate_hz).load_audio()
        except FileNotFoundError as error:
            raise AudioError(cut.id, f"{where}: no such audio file; check the manifest's paths") from error
        except (AudioLoadingError, DurationMismatchError, OSError, RuntimeError, ValueError) as error:
            problem = str(error).strip().splitlines()
            raise AudioError(
                cut.id, f"{where}: the audio cannot be read: {problem[-1] if problem else type(error).__name__}"
            ) from error
        waveform_T = np.ascontiguousarray(audio_CT[0], dtype=np.float32)
        if waveform_T.size == 0:
            raise AudioError(cut.id, f"{where}: the audio has no samples; remove it from the manifest")
        if not np.isfinite(waveform_T).all():
            raise AudioError(cut.id, f"{where}: the audio holds NaN or infinity; write the file again")
        return torch.from_numpy(waveform_T)

    def _fetched(self, cut: MonoCut) -> MonoCut:
        """The cut with remote audio brought into memory by fsspec, whose credentials are ours."""
        recording: Recording = cut.recording
        remote = [source for source in recording.sources if source.type == "url"]
        if not remote:
            return cut
        sources = []
        for source in recording.sources:
            arguments = self._s3 if str(source.source).startswith("s3://") else {}
            with fsspec.open(source.source, "rb", **arguments) as file:
                sources.append(AudioSource("memory", source.channels, file.read()))
        fetched = Recording(
            id=recording.id,
            sources=sources,
            sampling_rate=recording.sampling_rate,
            num_samples=recording.num_samples,
            duration=recording.duration,
            channel_ids=recording.channel_ids,
            transforms=recording.transforms,
        )
        copy = MonoCut.from_dict({**cut.to_dict(), "recording": None})
        copy.recording = fetched
        return copy


def decode_ahead(
    items: Iterable[Item], load: Callable[[Item], Result], *, threads: int, ahead: int
) -> Iterator[Result | AudioError]:
    """Results of `load` in the order of `items`, up to `ahead` of them computed before they are asked for.

    An `AudioError` is yielded in place of its result, so that one bad file does not end the stream.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        pending: deque[Future[Result]] = deque()

        def next_result() -> Result | AudioError:
            try:
                return pending.popleft().result()
            except AudioError as error:
                return error

        try:
            for item in items:
                pending.append(pool.submit(load, item))
                if len(pending) > ahead:
                    yield next_result()
            while pending:
                yield next_result()
        finally:
            for future in pending:
                future.cancel()


def length_sorted_batches(
    items: Sequence[Item], seconds: Sequence[float], *, batch_seconds: float
) -> list[list[Item]]:
    """Batches of items of similar length, longest first, each padded to at most `batch_seconds`.

    Longest first, so that a batch too large for the device shows at the start. An item that is longer than
    `batch_seconds` makes a batch of its own.
    """
    order = sorted(range(len(items)), key=lambda i: (-seconds[i], i))
    batches: list[list[Item]] = []
    longest = 0.0
    for i in order:
        if not batches or (len(batches[-1]) + 1) * longest > batch_seconds:
            batches.append([])
            longest = seconds[i]
        batches[-1].append(items[i])
    return batches

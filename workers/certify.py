"""The padding certificate: how much of an utterance's codes depends on what else was in its batch.

A frame's embedding is a function of its utterance, but sums are rounded in an order that a batch's shape decides. Where
two codes are almost equally good, the last digit decides between them.

Shape suffixes: T frames of an utterance, F frames of all, D embedding dimension, N codebooks.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lhotse import MonoCut
from torch import Tensor

from mvqkd.models.quantizer import Coder, Quantizer
from mvqkd.models.teachers import Teacher, WaveformError
from mvqkd.storage.location import Location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.cuts import UtteranceError
from mvqkd.workers.decode_ahead import length_sorted_batches
from mvqkd.workers.embed import EmbedderSettings
from mvqkd.workers.quantizer_record import load_quantizer
from mvqkd.workers.teacher import choose_device, open_teacher

LIMIT = 0.001
"""Share of codes that may change between alone and batched in float32."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What another way of batching changes.

    Attributes:
        codes: share of codes that are other ones; frames: of frames with any.
        rrl: relative reconstruction loss this way, minus that of each utterance alone.
        embeddings: distance of the embeddings over their size, both summed over frames in squares.
        error_of_changed: on the frames that changed, the error of these codes over that of the codes alone, minus 1.
            Near 0: the codes were almost equally good.
    """

    codes: float
    frames: float
    rrl: float
    embeddings: float
    error_of_changed: float


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What was found on a sample.

    Attributes:
        changes: by the way of batching, against each utterance alone in the run's precision.
        rrl: of the sample, each utterance alone.
        utterances, frames, hours: of the sample. left_out: utterances that could not be used.
        device, dtype, search: with which it holds.
        certified: whether `batched` is within `LIMIT`; in float32 it has to be.
    """

    changes: Mapping[str, Change]
    rrl: float
    utterances: int
    frames: int
    hours: float
    left_out: int
    device: str
    dtype: str
    search: str
    certified: bool


@dataclass(frozen=True, kw_only=True)
class CertifySettings:
    """What a `Certifier` is built from, in the process where it works; see there."""

    embedder: EmbedderSettings
    quantizer: Location
    search: str

    def build(self) -> "Certifier":
        """Load teacher and quantizer in this process."""
        config = self.embedder.teacher
        device = choose_device(config.device)
        torch.set_num_threads(self.embedder.compute_threads)

        def load(dtype: str) -> Teacher:
            return open_teacher(config.model_copy(update={"dtype": dtype}), options=self.embedder.options)

        teacher = load(config.dtype)
        return Certifier(
            teacher=teacher,
            exact=None if config.dtype == "float32" else load("float32"),
            quantizer=load_quantizer(self.quantizer)[0].to(device),
            loader=AudioLoader(
                teacher.info.sample_rate_hz, s3=self.embedder.options, root=self.embedder.root
            ),
            batch_seconds=self.embedder.batch_seconds,
            search=self.search,
            device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        )


class Certifier:
    """Encodes a sample in several ways.

    Args:
        teacher: in the run's precision.
        exact: the same in float32; None where that is the run's precision.
        quantizer: fitted on its embeddings.
        loader: gives waveforms at the teacher's rate.
        batch_seconds: of the extraction.
        search: how codes are searched.
        device: its name.
    """

    def __init__(
        self,
        *,
        teacher: Teacher,
        exact: Teacher | None,
        quantizer: Quantizer,
        loader: AudioLoader,
        batch_seconds: float,
        search: str,
        device: str,
    ) -> None:
        self._teacher, self._exact, self._loader, self._device = teacher, exact, loader, device
        self._quantizer, self._coder, self._search = quantizer, Coder(quantizer, search=search), search
        self._batch_seconds = batch_seconds

    def run(
        self,
        cuts: Sequence[MonoCut],
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> Certificate:
        """Encode the sample alone and in each other way.

        Args:
            last_attempt: makes no difference.
            note: called with `done` and `total` ways.

        Raises:
            ValueError: no utterance of the sample can be used.
        """
        usable = [cut for cut in cuts if self._is_usable(cut)]
        if not usable:
            raise ValueError("no utterance of the sample can be used; see `mvqkd calibrate`")
        ways = self._ways(usable)
        note({"done": 0, "total": len(ways) + 1})
        alone = self._encode(self._teacher, [[cut] for cut in usable])
        changes = {}
        for number, (name, (teacher, batches)) in enumerate(ways.items(), start=1):
            note({"done": number, "total": len(ways) + 1})
            changes[name] = _compare(alone, self._encode(teacher, batches))
        note({"done": len(ways) + 1, "total": len(ways) + 1})
        return Certificate(
            changes=changes,
            rrl=alone.rrl,
            utterances=len(usable),
            frames=len(alone.error_F),
            hours=sum(cut.duration for cut in usable) / 3600,
            left_out=len(cuts) - len(usable),
            device=self._device,
            dtype=self._teacher.info.dtype,
            search=self._search,
            certified=changes["batched"].codes < LIMIT,
        )

    def _is_usable(self, cut: MonoCut) -> bool:
        try:
            batch = self._teacher.embed_batch([self._loader(cut)])
        except (UtteranceError, WaveformError):
            return False
        return bool(batch.finite_B.all())

    def _ways(self, cuts: Sequence[MonoCut]) -> dict[str, tuple[Teacher, list[list[MonoCut]]]]:
        """By name the teacher and the batches of each way of encoding the same cuts."""
        shuffled = list(cuts)
        random.Random(0).shuffle(shuffled)
        per_batch = max(2, round(self._batch_seconds / max(cut.duration for cut in cuts)))
        ways = {
            "batched": (self._teacher, _batches(cuts, self._batch_seconds)),
            "half as large batches": (self._teacher, _batches(cuts, self._batch_seconds / 2)),
            "twice as large batches": (self._teacher, _batches(cuts, self._batch_seconds * 2)),
            "lengths mixed": (
                self._teacher,
                [shuffled[i : i + per_batch] for i in range(0, len(shuffled), per_batch)],
            ),
        }
        if self._exact is not None:
            ways["alone in float32"] = (self._exact, [[cut] for cut in cuts])
            ways["batched in float32"] = (self._exact, _batches(cuts, self._batch_seconds))
        return ways

    @torch.no_grad()
    def _encode(self, teacher: Teacher, batches: Sequence[Sequence[MonoCut]]) -> "_Encoded":
        """All utterances in the order of their ids, whatever the batches."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for batch in batches:
            embedded = teacher.embed_batch([self._loader(cut) for cut in batch])
            (x_FD,) = embedded.frames
            codes_FN, _ = self._coder(x_FD, embedded.lengths_B)
            parts = zip(batch, x_FD.split(embedded.lengths), codes_FN.split(embedded.lengths), strict=True)
            found |= {cut.id: (x_TD, codes_TN.long()) for cut, x_TD, codes_TN in parts}
        ordered = [found[key] for key in sorted(found)]
        x_FD, codes_FN = (torch.cat(each) for each in zip(*ordered, strict=True))
        distance_F = (x_FD - self._quantizer.decode(codes_FN)).double().square().sum(dim=1)
        mean_D = self._quantizer.get_data_mean()
        return _Encoded(
            x_FD=x_FD,
            codes_FN=codes_FN,
            error_F=distance_F,
            rrl=float(distance_F.sum() / (x_FD - mean_D).double().square().sum()),
        )


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """Embeddings, codes, and the squared error of each frame."""

    x_FD: Tensor
    codes_FN: Tensor
    error_F: Tensor
    rrl: float


def _batches(cuts: Sequence[MonoCut], batch_seconds: float) -> list[list[MonoCut]]:
    return length_sorted_batches(cuts, [cut.duration for cut in cuts], batch_seconds=batch_seconds)


def _compare(alone: _Encoded, other: _Encoded) -> Change:
    differs_FN = alone.codes_FN != other.codes_FN
    differs_F = differs_FN.any(dim=1)
    size = float(alone.x_FD.double().square().sum())
    error_of_changed = 0.0
    if bool(differs_F.any()):
        error_of_changed = float(other.error_F[differs_F].sum() / alone.error_F[differs_F].sum()) - 1
    return Change(
        codes=float(differs_FN.double().mean()),
        frames=float(differs_F.double().mean()),
        rrl=other.rrl - alone.rrl,
        embeddings=(float((alone.x_FD - other.x_FD).double().square().sum()) / size) ** 0.5,
        error_of_changed=error_of_changed,
    )

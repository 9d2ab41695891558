"""The codes or embeddings of a shard, batch by batch, one batch behind the device.

Shape suffixes: T frames of an utterance, N codebooks.
"""

from collections import defaultdict

from lhotse import MonoCut

from mvqkd.models.teachers import NonFiniteEmbeddingError
from mvqkd.storage.payloads import LARGEST_HALF
from mvqkd.workers.code import BatchCoder, Coded, Launched, Rounded
from mvqkd.workers.embed import not_finite
from mvqkd.workers.feed import Computed, LeftOut
from mvqkd.workers.meters import Meters


class HalfRangeError(ValueError):
    """An embedding is beyond float16."""


class ShardCodes:
    """Takes what was launched and keeps what comes of it.

    Args:
        coder: that launched it.
        meters: told how much was done and how long it took.

    Attributes:
        coded: by the id of a cut, what each table keeps of it; None in the place of what one cannot hold.
        num_samples: by the id of a cut, samples of it, without a window's context.
        left_out: the other cuts.
        left_out_of: by the number of a table, the cuts of `coded` that it cannot hold.
        seconds: of the cuts that are through, one way or the other.
    """

    def __init__(self, coder: BatchCoder, meters: Meters) -> None:
        self._info, self._meters = coder.teacher.info, meters
        self._waiting: Computed[Launched] | None = None
        self.coded: dict[str, list[Coded | Rounded | None]] = {}
        self.num_samples: dict[str, int] = {}
        self.left_out: list[LeftOut] = []
        self.left_out_of: defaultdict[int, list[LeftOut]] = defaultdict(list)
        self.seconds = 0.0

    @property
    def num_left_out(self) -> int:
        """Cuts that are in no table."""
        nowhere = sum(all(one is None for one in kept) for kept in self.coded.values())
        return len(self.left_out) + nowhere

    def take(self, done: Computed[Launched] | LeftOut) -> None:
        """The next batch, which the device may still work on, or a cut that is in none.

        Waits for the batch before, which the device works on first.
        """
        if isinstance(done, LeftOut):
            self._leave_out(done)
            return
        self.finish()
        self._waiting = done

    def finish(self) -> None:
        """Wait for the last batch."""
        batch, self._waiting = self._waiting, None
        if batch is None:
            return
        for index, (item, coded) in enumerate(zip(batch.items, batch.result.coded(), strict=True)):
            if coded is None:
                error = NonFiniteEmbeddingError(indexes=(index,), embeddings=[], dtype=self._info.dtype)
                self._leave_out(LeftOut.by_teacher(item.cut, error, not_finite(error)))
            else:
                self.coded[item.cut.id] = [
                    self._checked(item.cut, kept, number) for number, kept in enumerate(coded)
                ]
                self.num_samples[item.cut.id] = item.num_samples
                self.seconds += item.cut.duration
                if isinstance(coded[0], Coded):
                    self._meters.add(rrl_frames=coded[0].rrl * len(coded[0].codes_TN))
        samples = [item.waveform_T.numel() for item in batch.items]
        teacher_s, quantizers_s = batch.result.clock.parts_s()
        self._meters.add(
            utterances=len(samples),
            frames=sum(batch.result.lengths),
            audio_s=sum(samples) / self._info.sample_rate_hz,
            computed_s=len(samples) * max(samples) / self._info.sample_rate_hz,
            teacher_busy_s=teacher_s,
            quantizer_busy_s=quantizers_s,
        )

    def _checked(self, cut: MonoCut, kept: Coded | Rounded, number: int) -> Coded | Rounded | None:
        """What the table of this number keeps; None for what it cannot hold, which is recorded for it alone."""
        if isinstance(kept, Coded) or kept.largest <= LARGEST_HALF:
            return kept
        problem = (
            f"the teacher's embeddings reach {kept.largest:.6g}, and a table of them holds float16, up to "
            f"{LARGEST_HALF:g}; choose another layer, or codes (target: codes), which have no such limit"
        )
        self.left_out_of[number].append(LeftOut.by_teacher(cut, HalfRangeError(problem), problem))
        return None

    def _leave_out(self, left_out: LeftOut) -> None:
        self.left_out.append(left_out)
        self.seconds += left_out.cut.duration
        self._meters.add(left_out=1)

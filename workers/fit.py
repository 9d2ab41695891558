"""Fitting the quantizer: sample, embed, fit, store.

Shape suffixes: F frames, D embedding dimension.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from lhotse import MonoCut
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from mvqkd.models.quantizer import FitConfig, FitProgress, FitResult, fit_quantizer
from mvqkd.storage.errors import ObjectMissingError
from mvqkd.storage.location import Location
from mvqkd.workers.audio import AudioLoader
from mvqkd.workers.batch_bound import batch_seconds_on
from mvqkd.workers.embed import Embedder, EmbedderSettings
from mvqkd.workers.feed import LeftOut
from mvqkd.workers.loudness import measure_loudness
from mvqkd.workers.quantizer_record import QuantizerRecord, TrainingData, save_quantizer
from mvqkd.workers.sample import Sample
from mvqkd.workers.teacher import choose_device

STATE = "fit-state.safetensors"
STATE_OF = "digest_of_fit"
STATE_VERSION = 3
"""Raised when the content of the state changes, so that a fit starts anew where an older one left its state."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What a `QuantizerFitter` is built from, in the process where it works; see there.

    Attributes:
        embedder: the teacher and how it is fed.
    """

    embedder: EmbedderSettings
    location: Location
    config: FitConfig
    max_frames: int
    settings: Mapping[str, Any]

    def build(self) -> "QuantizerFitter":
        """Load the teacher in this process."""
        embedder = self.embedder.build()
        rate_hz = embedder.teacher.info.sample_rate_hz
        return QuantizerFitter(
            embedder=embedder,
            loader=AudioLoader(rate_hz, s3=self.embedder.options, root=self.embedder.root),
            location=self.location,
            config=self.config,
            max_frames=self.max_frames,
            settings=self.settings,
            device=choose_device(self.embedder.teacher.device),
        )


class QuantizerFitter:
    """Embeds a sample of the corpus, fits a quantizer to it, and stores it with all that is known of it.

    Args:
        embedder: the teacher and how it is fed.
        location: where the artifact goes (`quantizer.safetensors`, `quantizer.json`); a fit that was
            interrupted left its state there and is continued.
        config: of the fit.
        max_frames: frames kept in memory; more are thinned out evenly.
        device: where to fit.
        settings: of the run, kept in the artifact, so that a later run can tell whether it may be used.
        loader: gives waveforms at the teacher's rate; with it the loudness of the sample is kept in the artifact, for
            `mvqkd calibrate` to compare with.
    """

    def __init__(
        self,
        *,
        embedder: Embedder,
        location: Location,
        config: FitConfig,
        max_frames: int,
        device: torch.device,
        settings: Mapping[str, Any] | None = None,
        loader: AudioLoader | None = None,
    ) -> None:
        self._embedder, self._location, self._config = embedder, location, config
        self._loader = loader
        self._max_frames, self._device = max_frames, device
        self._settings = dict(settings or {})

    def run(
        self,
        sample: Sample,
        *,
        last_attempt: bool = True,
        note: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> QuantizerRecord:
        """Fit and store; returns what is known of the quantizer.

        Args:
            sample: cuts to fit on and cuts to judge by.
            last_attempt: makes no difference to a fit.
            note: called with `stage` (embed or fit), `done`, `total` and figures.

        Raises:
            ValueError: no utterance of the sample could be embedded.
        """
        info = self._embedder.teacher.info
        cuts_sha256 = _digest_of([cut.id for cut in (*sample.train, *sample.valid)])
        left_out: list[LeftOut] = []
        total = len(sample.train) + len(sample.valid)
        train_FD = self._embed(sample.train, self._max_frames, left_out, note, 0, total)
        valid_FD = self._embed(
            sample.valid, max(1, self._max_frames // 4), left_out, note, len(sample.train), total
        )
        # A sample smaller than a batch, as of a first try on a handful of files.
        config = replace(self._config, batch_size=min(self._config.batch_size, len(train_FD)))
        fit_digest = _digest_of([STATE_VERSION, cuts_sha256, len(train_FD), info.fingerprint, asdict(config)])
        result = fit_quantizer(
            train_FD,
            valid=valid_FD,
            config=config,
            device=self._device,
            progress=lambda now: note(_note(now)),
            on_state=lambda state: self._save_state(state, fit_digest),
            resume_state=self._saved_state(fit_digest),
        )
        data = TrainingData(
            utterances=len(sample.train),
            frames=len(train_FD),
            valid_utterances=len(sample.valid),
            valid_frames=len(valid_FD),
            held_out=sample.held_out,
            cuts_sha256=cuts_sha256,
            left_out=[{"cut_id": x.cut.id, "stage": x.stage, "message": x.message} for x in left_out],
            loudness=self._loudness(sample),
        )
        facts = _facts(result) | {
            "teacher": asdict(info),
            "config": asdict(config),
            "settings": self._settings,
            "training_data": data,
            "batch_seconds": self._batch_seconds(sample),
        }
        record = save_quantizer(self._location, result.quantizer, facts)
        self._location.remove(STATE)
        return record

    def _batch_seconds(self, sample: Sample) -> float | None:
        """How large batches should be here; None where no audio can be had."""
        if self._loader is None:
            return None
        return batch_seconds_on(self._embedder.teacher, self._loader, sample.train, device=self._device)

    def _loudness(self, sample: Sample) -> dict[str, float] | None:
        if self._loader is None:
            return None
        rate_hz = self._loader.sample_rate_hz
        found = measure_loudness(sample.train, self._loader, sample_rate_hz=rate_hz, threads=2)
        return None if found is None else asdict(found)

    def _embed(
        self,
        cuts: Sequence[MonoCut],
        max_frames: int,
        left_out: list[LeftOut],
        note: Callable[[dict[str, Any]], None],
        before: int,
        total: int,
    ) -> Tensor:
        """float32 (frames, dim) on the CPU, at most `max_frames`, in the order of `cuts`."""
        teacher = self._embedder.teacher
        expected = sum(int(cut.duration * teacher.info.frame_rate_hz) for cut in cuts)
        every = max(1, -(-expected // max_frames))
        kept: dict[str, Tensor] = {}
        for number, result in enumerate(self._embedder(cuts), start=1):
            if isinstance(result, LeftOut):
                left_out.append(result)
            else:
                # Every n-th frame, each utterance from another start, so that no position is preferred.
                first = int(hashlib.sha256(result.cut.id.encode()).hexdigest(), 16) % every
                # Cloned, as a view would keep the frames between in memory.
                kept[result.cut.id] = result.embeddings_TD[first::every].clone().cpu()
            note({"stage": "embed", "done": before + number, "total": total})
        frames = [kept[cut.id] for cut in cuts if cut.id in kept]
        if not frames:
            first_problem = left_out[0].message if left_out else "the sample is empty"
            raise ValueError(f"no utterance of the quantizer's sample could be embedded: {first_problem}")
        return torch.cat(frames)[:max_frames]

    def _save_state(self, state: dict[str, Tensor], fit_digest: str) -> None:
        of = torch.tensor(list(fit_digest.encode()), dtype=torch.uint8)
        self._location.replace(STATE, save_tensors({**state, STATE_OF: of}))

    def _saved_state(self, fit_digest: str) -> dict[str, Tensor] | None:
        try:
            state = load_tensors(self._location.read_bytes(STATE))
        except ObjectMissingError:
            return None
        except SafetensorError as error:
            where = self._location.full_url(STATE)
            raise ValueError(f"{where}: damaged ({error}); delete it, the fit then starts anew") from error
        of = state.pop(STATE_OF, None)
        # The state of a fit to other data, of another teacher or with other settings is of no use here.
        return state if of is not None and bytes(of.tolist()).decode() == fit_digest else None


def _facts(result: FitResult) -> dict[str, Any]:
    """What a fit found out, under the names of `QuantizerRecord`."""
    return {
        "valid_rrl": result.valid_rrl,
        "usage_entropy_bits": result.usage_entropy_bits,
        "codebook_correlations": result.codebook_correlations,
        "history": [asdict(point) for point in result.history],
        "steps": result.steps,
        "seconds": result.seconds,
    }


def _note(now: FitProgress) -> dict[str, Any]:
    return {
        "stage": "fit",
        "done": now.step,
        "total": now.steps,
        "train_rrl": now.train_rrl,
        **({} if now.valid_rrl is None else {"valid_rrl": now.valid_rrl}),
    }


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""The quantizer as it is kept: `quantizer.safetensors` and, with all that is known of it, `quantizer.json`.

The one place that writes and reads them. The record alone is read without building the model, and without torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from mvqkd.storage.artifacts import load_artifact, load_metadata, save_artifact
from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ArtifactError
from mvqkd.storage.location import Location

if TYPE_CHECKING:
    from mvqkd.models.quantizer import Quantizer

NAME = "quantizer"


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a quantizer was fitted on, and judged by.

    Attributes:
        utterances, frames: of the fit.
        valid_utterances, valid_frames: held out.
        held_out: what no two of them share: speakers, recordings or utterances.
        cuts_sha256: over the ids of all cuts.
        left_out: cut_id, stage and message of each utterance that gave no embeddings.
        loudness: fields of `workers.loudness.Loudness` of this audio; None in records from before it was measured.
    """

    utterances: int
    frames: int
    valid_utterances: int
    valid_frames: int
    held_out: str
    cuts_sha256: str
    left_out: list[dict[str, str]]
    loudness: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizerRecord:
    """All that is known of a fitted quantizer.

    Attributes:
        id: eight hexadecimal digits, of the weights and the way of encoding.
        dim: of the teacher's embeddings. num_codebooks, codebook_size: N and K.
        logprob_weight, prefix_weights, channel_weights: how codes are searched, see `Quantizer`.
        teacher: `TeacherInfo` of the teacher, as a mapping.
        config: `FitConfig` of the fit, as a mapping.
        settings: sections `teacher`, `quantizer` and `corpus` of the run that fitted it.
        training_data: what it was fitted on.
        valid_rrl: relative reconstruction loss on the held-out frames.
        usage_entropy_bits: (N,), codebook_correlations: (N, N).
        history: the steps at which the loss was measured.
        steps, seconds: of the fit.
        batch_seconds: how large a batch of the teacher should be on the device of the fit; None in older records.
    """

    id: str
    dim: int
    num_codebooks: int
    codebook_size: int
    logprob_weight: float = 0.0
    prefix_weights: list[float] | None = None
    channel_weights: list[float] | None = None
    teacher: dict[str, Any]
    config: dict[str, Any]
    settings: dict[str, Any]
    training_data: TrainingData
    valid_rrl: float
    usage_entropy_bits: list[float]
    codebook_correlations: list[list[float]]
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    batch_seconds: float | None = None

    def contract(self, *, search: str) -> TableContract:
        """The contract of a table of this quantizer's codes.

        Args:
            search: how they are searched, a name out of `models.quantizer.SEARCHES`.
        """
        teacher = self.teacher
        return TableContract(
            teacher_fingerprint=teacher["fingerprint"],
            teacher_name=teacher["name"],
            layer=teacher["layer"],
            quantizer_id=self.id,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
            frame_rate_hz=teacher["frame_rate_hz"],
            frame_offset_s=teacher["frame_offset_s"],
            sample_rate_hz=teacher["sample_rate_hz"],
            search=search,
        )


def save_quantizer(location: Location, quantizer: "Quantizer", facts: Mapping[str, Any]) -> QuantizerRecord:
    """Store a quantizer and what is known of it beyond its sizes; returns the record."""
    from mvqkd.models.quantizer import quantizer_to_arrays

    arrays, encoding = quantizer_to_arrays(quantizer)
    record = QuantizerRecord(**encoding, **facts)
    save_artifact(location, NAME, arrays, asdict(record))
    return record


def load_record(location: Location) -> QuantizerRecord:
    """What is known of the stored quantizer.

    Raises:
        ArtifactError: there is none, or its record is damaged.
    """
    return _record(location, load_metadata(location, NAME))


def load_quantizer(location: Location) -> tuple["Quantizer", QuantizerRecord]:
    """The stored quantizer (CPU, eval mode) and what is known of it.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    from mvqkd.models.quantizer import quantizer_from_arrays

    arrays, metadata = load_artifact(location, NAME)
    return quantizer_from_arrays(arrays, metadata), _record(location, metadata)


def _record(location: Location, metadata: Mapping[str, Any]) -> QuantizerRecord:
    known = {item.name for item in fields(QuantizerRecord)}
    try:
        data = TrainingData(**metadata["training_data"])
        return QuantizerRecord(**{k: v for k, v in metadata.items() if k in known} | {"training_data": data})
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{location.full_url(NAME)}.json: not the record of a quantizer ({error}); fit it again"
        ) from error

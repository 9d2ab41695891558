"""Whether a sample of audio is of the kind that a quantizer was fitted on, in words."""

from collections.abc import Iterator

from mvqkd.workers.calibrate import Calibration
from mvqkd.workers.loudness import Loudness
from mvqkd.workers.quality import Quality
from mvqkd.workers.quantizer_record import QuantizerRecord

MOST_RRL_TIMES = 1.25
"""Speech of other speakers of the same corpus is within a few per cent of the held-out loss."""
MOST_LOUDNESS_DB = 12.0
"""Between corpora of clean speech some 6 dB are usual."""
MOST_BAND_DB = 20.0
"""Telephone speech has 30 dB and more less in the upper half of the band than what a microphone heard."""
MOST_SILENCE = 0.3
MOST_WER = 0.5
"""A recognizer that gets every second word wrong has not learned this speech."""
LEAST_FRAMES = 2000
"""Forty seconds; the loss of fewer says more of the speaker than of the domain."""
_LEAST_BITS_SHARE = 0.9
_FRAMES_FOR_ENTROPY = 20  # for each entry; with fewer the entropy comes out too low


def warnings_of(found: Calibration, record: QuantizerRecord | None) -> list[str]:
    """What says that teacher or quantizer do not know this audio; each with the figures and the remedy."""
    return [
        *_of_teacher(found),
        *(_of_quality(found.quality, record) if record is not None and found.quality is not None else ()),
        *(_of_loudness(found.loudness, record) if record is not None and found.loudness is not None else ()),
    ]


def _of_teacher(found: Calibration) -> Iterator[str]:
    if found.teacher_wer is not None and found.teacher_wer > MOST_WER:
        yield (
            f"the teacher's own word error rate is {found.teacher_wer:.0%} on {found.teacher_wer_utterances} "
            f"utterances (more than {MOST_WER:.0%}): it does not know this speech or language, or the transcripts are "
            "not of this audio; choose another teacher, or listen to some"
        )
    if 10 * found.left_out > found.utterances:
        yield (
            f"{found.left_out} of {found.utterances} utterances gave no embeddings, such as: {found.problems[0]}"
        )


def _of_quality(quality: Quality, record: QuantizerRecord) -> Iterator[str]:
    if quality.frames < LEAST_FRAMES:
        return
    if quality.rrl > MOST_RRL_TIMES * record.valid_rrl:
        yield (
            f"the quantizer's loss (RRL) is {quality.rrl:.3f} here and {record.valid_rrl:.3f} where it was fitted, "
            f"{quality.rrl / record.valid_rrl:.2f} times as much (more than {MOST_RRL_TIMES:g}): this audio is of "
            "another domain; fit the quantizer on this corpus, in a storage.root of its own"
        )
    if quality.frames < _FRAMES_FOR_ENTROPY * record.codebook_size:
        return
    bits, fitted = _mean(quality.usage_entropy_bits), _mean(record.usage_entropy_bits)
    if bits < _LEAST_BITS_SHARE * fitted:
        yield (
            f"{bits:.2f} bits of a code are used here and {fitted:.2f} where the quantizer was fitted: it has many "
            "entries for what does not occur in this audio; fit it on this corpus"
        )


def _of_loudness(loudness: Loudness, record: QuantizerRecord) -> Iterator[str]:
    fitted = record.training_data.loudness
    if fitted is None:
        return
    louder_db = loudness.rms_dbfs - fitted["rms_dbfs"]
    if abs(louder_db) > MOST_LOUDNESS_DB:
        yield (
            f"this audio is at {loudness.rms_dbfs:.0f} dBFS, that of the fit at {fitted['rms_dbfs']:.0f} dBFS "
            f"({'louder' if louder_db > 0 else 'quieter'} by more than {MOST_LOUDNESS_DB:g} dB): look whether the "
            "right files are read, or write them at another level"
        )
    thinner_db = fitted["upper_half_db"] - loudness.upper_half_db
    if abs(thinner_db) > MOST_BAND_DB:
        yield (
            f"the upper half of the band is at {loudness.upper_half_db:.0f} dB here and at "
            f"{fitted['upper_half_db']:.0f} dB where the quantizer was fitted (more than {MOST_BAND_DB:g} dB apart): "
            f"{'this' if thinner_db > 0 else 'that'} audio was sampled at a lower rate before, as telephone calls are"
        )
    more = loudness.silence_share - fitted["silence_share"]
    if abs(more) > MOST_SILENCE:
        remedy = (
            "cut it by voice activity, or fit the quantizer on this corpus"
            if more > 0
            else "noise or music lies under it; fit the quantizer on this corpus"
        )
        yield (
            f"{loudness.silence_share:.0%} of this audio is silence, {fitted['silence_share']:.0%} of that of the fit: "
            f"{remedy}"
        )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

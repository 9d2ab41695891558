"""transformers' `Wav2Vec2ForCTC` as a student, from random weights: it hears the waveform and no log-mel.

Shape suffixes: B utterances, T samples, F features (1, the sample itself), S the student's frames, V different units.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from mvqkd.models.decoding.greedy import BLANK
from mvqkd.models.students.base import StudentFrames
from mvqkd.models.students.ctc import CtcStudent

SAMPLE_RATE_HZ = 16_000


class Wav2Vec2Ctc(CtcStudent):
    """`Wav2Vec2ForCTC` at 50 frames a second; `sizes` are keys of `Wav2Vec2Config`.

    Layer norms stand where the base model has a group norm over the whole padded batch, so that an utterance does not
    depend on the others of its batch. Layers are never dropped as a whole, since the one that predicts codes has to run
    in every pass; the masks are those of `distill`, so that no weight is without a gradient.
    """

    # 400 samples make a frame, 320 samples after the one before.
    frames = StudentFrames(
        sample_rate_hz=SAMPLE_RATE_HZ,
        frame_rate_hz=50.0,
        frame_offset_s=200 / SAMPLE_RATE_HZ,
        min_samples=400,
    )

    def __init__(self, num_units: int, **sizes: Any) -> None:
        super().__init__()
        config = Wav2Vec2Config(
            vocab_size=num_units,
            pad_token_id=BLANK,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            conv_bias=True,
            layerdrop=0.0,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
            **sizes,
        )
        self.model = Wav2Vec2ForCTC(config)

    @property
    def channels(self) -> int:
        """See `Student`."""
        return int(self.model.config.hidden_size)

    @property
    def layers(self) -> nn.ModuleList:
        """See `Student`; not an attribute, or the weights would be stored under two names."""
        return self.model.wav2vec2.encoder.layers

    @property
    def feature_rate_hz(self) -> float:
        """A feature is a sample."""
        return float(SAMPLE_RATE_HZ)

    def features(self, waveform_T: Tensor) -> Tensor:
        """The waveform with zero mean and unit variance, as (T, 1)."""
        return ((waveform_T - waveform_T.mean()) / (waveform_T.std() + 1e-5)).unsqueeze(1)

    def num_frames(self, num_feature_frames: int) -> int:
        """See `Student.num_frames`."""
        if num_feature_frames < self.frames.min_samples:
            return 0
        return int(self._frame_lengths(torch.tensor(num_feature_frames)))

    def logits(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """See `CtcStudent.logits`."""
        mask_BT = torch.arange(features_BTF.shape[1], device=lengths_B.device) < lengths_B.unsqueeze(1)
        logits_BSV = self.model(features_BTF.squeeze(2), attention_mask=mask_BT).logits
        return logits_BSV, self._frame_lengths(lengths_B)

    def _frame_lengths(self, num_samples: Tensor) -> Tensor:
        lengths: Tensor = self.model._get_feat_extract_output_lengths(num_samples)
        return lengths

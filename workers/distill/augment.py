"""Augmentation of features: SpecAugment as the run file sets it.

Shape suffixes: T frames, F features.
"""

from torch import Generator, Tensor

from mvqkd.models.features import spec_augment
from mvqkd.workers.distill.settings import DistillConfig


class Augment:
    """Masks stripes of features.

    Args:
        settings: numbers and widths of the masks.
        feature_rate_hz: feature frames a second.
    """

    def __init__(self, settings: DistillConfig, *, feature_rate_hz: float) -> None:
        self._settings = settings
        self._max_time_frames = round(settings.time_mask_s * feature_rate_hz)

    def __call__(self, features_TF: Tensor, generator: Generator) -> Tensor:
        """A masked copy of (T, F)."""
        return spec_augment(
            features_TF,
            time_masks=self._settings.time_masks,
            max_time_frames=self._max_time_frames,
            freq_masks=self._settings.freq_masks,
            max_freq_bins=self._settings.freq_mask_bins,
            generator=generator,
        )

"""Augmentation of features: SpecAugment as the run file sets it.

Shape suffixes: T frames, F features.
"""

from collections.abc import Callable

from torch import Generator, Tensor

from mvqkd.models.features import spec_augment
from mvqkd.workers.distill.settings import DistillConfig


class Augment:
    """Masks stripes of features.

    Args:
        settings: numbers and widths of the masks.
        feature_rate_hz: feature frames a second.
        mask_value: what stands where features (T, F) are masked, as `Student.mask_value`.
    """

    def __init__(
        self,
        settings: DistillConfig,
        *,
        feature_rate_hz: float,
        mask_value: Callable[[Tensor], float] = lambda features_TF: 0.0,
    ) -> None:
        self._settings, self._mask_value = settings, mask_value
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
            fill=self._mask_value(features_TF),
        )

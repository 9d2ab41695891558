"""What a teacher with a CTC head reads by itself: its word error rate on the corpus says whether it knows this speech.

Shape suffixes: T samples or frames, V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jiwer
import torch
from torch import Tensor

from mvqkd.workers.teacher import TeacherConfig, choose_device

_BOUNDARY = "|"


class CtcReader:
    """Greedy texts of a checkpoint with a CTC head.

    Args:
        folder: of the checkpoint, with `vocab.json`.
        device: where to compute.
        normalize: whether waveforms get zero mean and unit variance; None takes it from preprocessor_config.json.
    """

    def __init__(self, folder: Path, *, device: torch.device, normalize: bool | None = None) -> None:
        from transformers import AutoModelForCTC

        self._model: Any = AutoModelForCTC.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        self._model = self._model.to(device).eval()
        self._device = device
        units: dict[str, int] = json.loads((folder / "vocab.json").read_text())
        # Names in brackets are of padding, unknown and sentence ends; the padding is the blank.
        self._units = {
            index: " " if unit == _BOUNDARY else unit for unit, index in units.items() if unit[:1] not in "<["
        }
        self._blank = self._model.config.pad_token_id
        self._normalize = _normalizes(folder) if normalize is None else normalize

    @torch.inference_mode()
    def read(self, waveform: Tensor) -> str:
        """The text of a float32 waveform (num_samples,) at the teacher's rate."""
        audio_T = waveform.to(self._device)
        if self._normalize:
            audio_T = (audio_T - audio_T.mean()) / (audio_T.var(correction=0) + 1e-7).sqrt()
        logits_TV = self._model(audio_T[None]).logits[0]
        best = torch.unique_consecutive(logits_TV.argmax(-1)).tolist()
        text = "".join(self._units.get(index, "") for index in best if index != self._blank)
        return " ".join(text.split())


def has_ctc_head(config: TeacherConfig) -> bool:
    """Whether the teacher is a local folder of a checkpoint with a CTC head and its vocabulary."""
    folder = Path(config.path)
    if not (folder / "vocab.json").is_file() or not (folder / "config.json").is_file():
        return False
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or []
    return any(str(name).endswith("ForCTC") for name in architectures)


def open_ctc_reader(config: TeacherConfig) -> CtcReader | None:
    """The reader of a teacher that has a CTC head, else None."""
    if not has_ctc_head(config):
        return None
    return CtcReader(Path(config.path), device=choose_device(config.device), normalize=config.normalize)


def word_error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    """Of texts, whatever their case; punctuation counts. The references have words."""
    return float(jiwer.wer([text.lower() for text in references], [text.lower() for text in texts]))


def _normalizes(folder: Path) -> bool:
    path = folder / "preprocessor_config.json"
    return not path.is_file() or bool(json.loads(path.read_text()).get("do_normalize", True))

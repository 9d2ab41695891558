"""The architectures that can be teachers, as transformers has them; each is imported when it is asked for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvqkd.models.teachers.lean import transformers_class

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one architecture is built.

    ``files`` are the folder and the end of the names of its modules, ``config`` and ``model`` are names of classes in
    them. ``anchor`` is the name of a weight that every such encoder has; the names of layer n's begin with ``layers``
    and n - 1.
    """

    files: tuple[str, str]
    config: str
    model: str
    anchor: str = "feature_extractor.conv_layers.0.conv.weight"
    layers: str = "encoder.layers."

    @property
    def config_class(self) -> "type[PretrainedConfig]":
        """The class of its configurations."""
        return transformers_class(f"models.{self.files[0]}.configuration_{self.files[1]}", self.config)

    @property
    def model_class(self) -> "type[PreTrainedModel]":
        """The class of its models."""
        return transformers_class(f"models.{self.files[0]}.modeling_{self.files[1]}", self.model)


FAMILIES = {
    "hubert": Family(files=("hubert", "hubert"), config="HubertConfig", model="HubertModel"),
    "wavlm": Family(files=("wavlm", "wavlm"), config="WavLMConfig", model="WavLMModel"),
    "wav2vec2": Family(files=("wav2vec2", "wav2vec2"), config="Wav2Vec2Config", model="Wav2Vec2Model"),
    "data2vec-audio": Family(
        files=("data2vec", "data2vec_audio"), config="Data2VecAudioConfig", model="Data2VecAudioModel"
    ),
    "whisper": Family(
        files=("whisper", "whisper"),
        config="WhisperConfig",
        model="WhisperEncoder",
        anchor="conv1.weight",
        layers="layers.",
    ),
}

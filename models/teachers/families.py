"""The architectures that can be teachers, as transformers has them."""

from dataclasses import dataclass

from transformers import (
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PretrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one architecture is built.

    ``anchor`` is the name of a weight that every such encoder has; the names of layer n's begin with ``layers``
    and n - 1.
    """

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    anchor: str = "feature_extractor.conv_layers.0.conv.weight"
    layers: str = "encoder.layers."


FAMILIES = {
    "hubert": Family(config_class=HubertConfig, model_class=HubertModel),
    "wavlm": Family(config_class=WavLMConfig, model_class=WavLMModel),
    "wav2vec2": Family(config_class=Wav2Vec2Config, model_class=Wav2Vec2Model),
    "data2vec-audio": Family(config_class=Data2VecAudioConfig, model_class=Data2VecAudioModel),
    "whisper": Family(
        config_class=WhisperConfig, model_class=WhisperEncoder, anchor="conv1.weight", layers="layers."
    ),
}

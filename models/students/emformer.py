"""The Emformer encoder, built from torchaudio's Emformer layers.

Shape suffixes: B utterances, T feature frames, F mel bins, S encoder frames, P padded encoder frames (whole segments),
R copied right-context frames of all segments, M memory vectors, D encoder channels, Q queries, K keys.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchaudio.models import Emformer

from mvqkd.models.features import NUM_MEL_BINS
from mvqkd.models.students.config import SUBSAMPLING
from mvqkd.models.students.encoded import FrameStream, StreamableEncoder
from mvqkd.models.students.kinds import FRAME_MS, EmformerConfig
from mvqkd.models.students.subsampling import MEL_FRAMES_SEEN, Subsampling, subsampled_length


class BlockOutput(NamedTuple):
    """What a block puts out: the frames that there are, and what the next block takes."""

    frames_BSD: Tensor
    x_PBD: Tensor
    right_RBD: Tensor
    memory_MBD: Tensor


class EmformerBlock(nn.Module):
    """One of torchaudio's Emformer layers, as a module whose output can be tapped."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x_PBD: Tensor, right_RBD: Tensor, memory_MBD: Tensor, mask_QK: Tensor, *, num_frames: int
    ) -> BlockOutput:
        """All segments at once; `mask_QK` is True where a query does not see a key."""
        # Every utterance is as long as the batch: what follows its end is zeros for all layers, see EmformerEncoder.
        lengths_B = torch.full((x_PBD.shape[1],), len(x_PBD), device=x_PBD.device)
        x_PBD, right_RBD, memory_MBD = self.layer(x_PBD, lengths_B, right_RBD, memory_MBD, mask_QK)
        return BlockOutput(x_PBD[:num_frames].transpose(0, 1), x_PBD, right_RBD, memory_MBD)


class EmformerEncoder(StreamableEncoder):
    """Subsampling and a stack of torchaudio's Emformer layers (Shi et al., arXiv 2010.10759).

    An utterance is followed by frames of zeros, to whole segments and their right context, which all layers see as they
    see its own frames. So a frame depends on the utterance alone and not on the others of its batch, and a stream,
    which ends with such zeros too, has the same frames as the whole utterance.
    """

    def __init__(self, config: EmformerConfig) -> None:
        super().__init__()
        self.segment, self.left, self.right = (
            ms // FRAME_MS for ms in (config.segment_ms, config.left_context_ms, config.right_context_ms)
        )
        self.memory = config.memory_segments
        self.frames_ahead = self.segment + self.right - 1
        self.subsampling = Subsampling(config.encoder_dim)
        self.dropout = nn.Dropout(config.dropout)
        emformer = Emformer(
            input_dim=config.encoder_dim,
            num_heads=config.num_heads,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            segment_length=self.segment,
            dropout=config.dropout,
            activation="gelu",
            left_context_length=self.left,
            right_context_length=self.right,
            max_memory_size=self.memory,
            tanh_on_mem=True,
        )
        self.layers = nn.ModuleList(EmformerBlock(layer) for layer in emformer.emformer_layers)

    def forward(self, features_BTF: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch.

        Args:
            features_BTF: float32 (B, T, 80), padded with zeros.
            lengths_B: int64 mel frames of each utterance, at least 7.

        Returns:
            (B, S, D) encodings and int64 (B,) lengths at 25 Hz.
        """
        x_BSD = self.dropout(self.subsampling(features_BTF))
        out_lengths_B = subsampled_length(lengths_B)
        num_frames = x_BSD.shape[1]
        padding_BS = torch.arange(num_frames, device=x_BSD.device) >= out_lengths_B.unsqueeze(1)
        x_BSD = x_BSD.masked_fill(padding_BS.unsqueeze(-1), 0.0)
        segments = math.ceil(num_frames / self.segment)
        padded = segments * self.segment
        all_BPD = nn.functional.pad(x_BSD, (0, 0, 0, padded - num_frames + self.right))
        x_PBD = all_BPD[:, :padded].transpose(0, 1)
        right_RBD = self._right_context(all_BPD, segments)
        memory_MBD = self._summaries(x_PBD)[:-1]
        mask_QK = self._mask(segments, x_BSD.device)
        for layer in self.layers:
            out: BlockOutput = layer(x_PBD, right_RBD, memory_MBD, mask_QK, num_frames=num_frames)
            x_PBD, right_RBD, memory_MBD = out.x_PBD, out.right_RBD, out.memory_MBD
        return x_PBD[:num_frames].transpose(0, 1), out_lengths_B

    def layer_output(self, raw: object) -> Tensor:
        """The frames of a block: those of the utterances, in order, without the copied right context."""
        assert isinstance(raw, BlockOutput)
        return raw.frames_BSD

    def stream(self) -> "EmformerStream":
        """See `Encoder.stream`."""
        return EmformerStream(self)

    def step(self, x_BSD: Tensor, states: list[list[Tensor]] | None) -> tuple[Tensor, list[list[Tensor]]]:
        """One segment of a stream with its right context, and the states that the segment before left.

        Returns:
            The segment's encodings (B, segment, D), and the states for the next one.
        """
        x_PBD, right_RBD = x_BSD.transpose(0, 1).split([self.segment, self.right])
        memory_MBD = self._summaries(x_PBD)
        lengths_B = torch.full((x_BSD.shape[0],), self.segment, device=x_BSD.device)
        after: list[list[Tensor]] = []
        for number, block in enumerate(self.layers):
            state = None if states is None else states[number]
            assert isinstance(block, EmformerBlock)
            x_PBD, right_RBD, state, memory_MBD = block.layer.infer(
                x_PBD, lengths_B, right_RBD, state, memory_MBD
            )
            after.append(state)
        return x_PBD.transpose(0, 1), after

    def _right_context(self, all_BPD: Tensor, segments: int) -> Tensor:
        """The frames after each segment, copied: (segments * right, B, D)."""
        starts = torch.arange(1, segments + 1, device=all_BPD.device) * self.segment
        index = starts.unsqueeze(1) + torch.arange(self.right, device=all_BPD.device)
        return all_BPD[:, index.flatten()].transpose(0, 1)

    def _summaries(self, x_PBD: Tensor) -> Tensor:
        """The mean of each segment, where there is a memory: (segments, B, D)."""
        if not self.memory:
            return x_PBD.new_empty(0)
        return x_PBD.unflatten(0, (-1, self.segment)).mean(dim=1)

    def _mask(self, segments: int, device: torch.device) -> Tensor:
        """True where a query does not see a key, in torchaudio's order.

        Queries are the copied right context, the frames and the summary of each segment; keys are the summaries before
        the last, the copied right context and the frames.
        """
        number = torch.arange(segments, device=device)
        right = number.repeat_interleave(self.right)
        frames = number.repeat_interleave(self.segment)
        query_Q = torch.cat([right, frames, number if self.memory else number[:0]]).unsqueeze(1)
        position = torch.arange(len(frames), device=device)
        first_Q = query_Q * self.segment
        sees_frames = (position >= first_Q - self.left) & (position < first_Q + self.segment)
        sees = [right == query_Q, sees_frames]
        if self.memory:
            earlier = number[:-1]
            sees_memory = (earlier >= query_Q - self.memory) & (earlier < query_Q)
            sees_memory[-segments:] = False  # a summary is made without the ones before
            sees.insert(0, sees_memory)
        return ~torch.cat(sees, dim=1)


class EmformerStream(FrameStream):
    """The encoder's frames of one utterance, a segment at a time."""

    def __init__(self, encoder: EmformerEncoder) -> None:
        self._encoder = encoder
        self._mel_TF = torch.zeros(0, NUM_MEL_BINS)  # from the first that the next frame needs
        self._x_SD: Tensor | None = None  # from the first frame of the next segment
        self._states: list[list[Tensor]] | None = None

    def feed(self, features_TF: Tensor) -> Tensor:
        """See `FrameStream.feed`."""
        encoder = self._encoder
        self._mel_TF = torch.cat([self._mel_TF.to(features_TF), features_TF])
        new = subsampled_length(len(self._mel_TF)) if len(self._mel_TF) >= MEL_FRAMES_SEEN else 0
        if new:
            x_SD = encoder.subsampling(self._mel_TF.unsqueeze(0))[0]
            self._mel_TF = self._mel_TF[new * SUBSAMPLING :]
            self._x_SD = x_SD if self._x_SD is None else torch.cat([self._x_SD, x_SD])
        out = []
        while self._x_SD is not None and len(self._x_SD) >= encoder.segment + encoder.right:
            out.append(self._step(self._x_SD[: encoder.segment + encoder.right]))
            self._x_SD = self._x_SD[encoder.segment :]
        return torch.cat(out) if out else self._nothing()

    def finish(self) -> Tensor:
        """See `FrameStream.finish`: the utterance is followed by frames of zeros."""
        encoder, out = self._encoder, []
        while self._x_SD is not None and len(self._x_SD):
            count = min(len(self._x_SD), encoder.segment)
            x_SD = nn.functional.pad(self._x_SD, (0, 0, 0, encoder.segment + encoder.right))
            out.append(self._step(x_SD[: encoder.segment + encoder.right])[:count])
            self._x_SD = self._x_SD[encoder.segment :]
        return torch.cat(out) if out else self._nothing()

    def _step(self, x_SD: Tensor) -> Tensor:
        encoded_BSD, self._states = self._encoder.step(x_SD.unsqueeze(0), self._states)
        return encoded_BSD[0]

    def _nothing(self) -> Tensor:
        weight = self._encoder.subsampling.project.weight
        return weight.new_zeros(0, weight.shape[0])

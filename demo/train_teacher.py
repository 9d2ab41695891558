"""Trains the demo's teacher from scratch: `python -m demo.train_teacher --out FOLDER --run-folder FOLDER`.

One process, one thread; the speech is synthesized as it is needed. A run that was stopped goes on where its
last checkpoint stands, also with other `--hours` (the learning rate follows the share of the hours done).
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import jiwer
import torch
from transformers import Wav2Vec2ForCTC

from demo.synthesize import CorpusConfig, Utterance, speak_split
from demo.teacher_model import collate, encode_text, new_teacher, save_teacher, transcribe
from demo.teacher_speech import Example, batches
from demo.voices import SAMPLE_RATE_HZ, TEST_SPEAKERS, Espeak

POOL = 128
# Never the demo's own corpus: the sentences that measure progress here come from another seed.
EVALUATION = CorpusConfig(minutes_test=2.0, seed=1_000_003)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """hours: audio to hear in all. batch_s: seconds of audio a step. The rate warms up, then falls to 0.

    Raises ValueError for values that cannot train.
    """

    hours: float = 26.0
    batch_s: float = 12.0
    learning_rate: float = 1.5e-3
    warmup_hours: float = 0.7
    save_every_s: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("hours", "batch_s", "learning_rate", "warmup_hours", "save_every_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")

    def rate_after(self, hours: float) -> float:
        """The learning rate when `hours` of audio have been heard."""
        decay = max(0.02, 1.0 - hours / self.hours)
        return self.learning_rate * min(hours / self.warmup_hours + 0.01, 1.0) * decay


class TeacherTrainer:
    """Model, optimizer and position of one training run, kept in `run_folder`."""

    def __init__(self, config: TrainingConfig, run_folder: Path) -> None:
        self.config = config
        self.checkpoint = run_folder / "checkpoint.pt"
        self.model: Wav2Vec2ForCTC = new_teacher(config.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
        self.hours = 0.0
        self.steps = 0
        self.pools = 0
        self.elapsed_s = 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.hours, self.steps = state["hours"], state["steps"]
            self.pools, self.elapsed_s = state["pools"], state["elapsed_s"]

    def save(self) -> None:
        """Puts the whole state under its final name at once, so that a kill leaves the old one or the new."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "hours": self.hours,
                "steps": self.steps,
                "pools": self.pools,
                "elapsed_s": self.elapsed_s,
            },
            partial,
        )
        partial.replace(self.checkpoint)

    def step(self, examples: list[Example]) -> float:
        """One update; returns the CTC loss per character."""
        self.model.train()
        audio_BS, mask_BS = collate([example.audio for example in examples])
        encoded = [torch.tensor(encode_text(example.text)) for example in examples]
        labels_BU = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=-100)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_after(self.hours)
        loss: torch.Tensor = self.model(audio_BS, attention_mask=mask_BS, labels=labels_BU).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.hours += sum(len(example.audio) for example in examples) / SAMPLE_RATE_HZ / 3600
        self.steps += 1
        return loss.item()


def word_error_rate(model: Wav2Vec2ForCTC, utterances: list[Utterance]) -> float:
    """WER of greedy decoding over all utterances together, in batches of 16."""
    texts: list[str] = []
    for start in range(0, len(utterances), 16):
        texts += transcribe(model, [utterance.audio for utterance in utterances[start : start + 16]])
    return float(jiwer.wer([utterance.text for utterance in utterances], texts))


def train(config: TrainingConfig, run_folder: Path, out: Path) -> float:
    """Trains (or goes on) until `config.hours`, writes the teacher to `out`, returns its held-out WER."""
    trainer = TeacherTrainer(config, run_folder)
    held_out = list(speak_split(Espeak(), "test", TEST_SPEAKERS, EVALUATION.minutes_test, EVALUATION))
    engine = Espeak()
    print(
        f"{sum(p.numel() for p in trainer.model.parameters())} parameters, {trainer.hours:.2f} h heard so far"
    )
    last, saved = time.monotonic(), time.monotonic()
    while trainer.hours < config.hours:
        losses = []
        pool = batches(engine, f"{config.seed}-{trainer.pools}", pool=POOL, batch_s=config.batch_s)
        for examples in pool:
            losses.append(trainer.step(examples))
        trainer.pools += 1
        now = time.monotonic()
        trainer.elapsed_s += now - last
        last = now
        print(
            f"{trainer.elapsed_s:6.0f} s  {trainer.hours:6.2f} h  step {trainer.steps}  "
            f"loss {sum(losses) / len(losses):.3f}",
            flush=True,
        )
        if now - saved > config.save_every_s:
            saved = now
            trainer.save()
            save_teacher(trainer.model, out)
            print(f"held-out WER {word_error_rate(trainer.model, held_out):.3f}", flush=True)
    trainer.save()
    save_teacher(trainer.model, out)
    error_rate = word_error_rate(trainer.model, held_out)
    print(f"trained: {trainer.hours:.2f} h, {trainer.elapsed_s:.0f} s, held-out WER {error_rate:.4f}")
    return error_rate


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m demo.train_teacher`."""
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(
        prog="python -m demo.train_teacher", description="Train the demo's teacher."
    )
    parser.add_argument("--out", type=Path, required=True, help="where the teacher goes")
    parser.add_argument("--run-folder", type=Path, required=True, help="where the resumable state is kept")
    parser.add_argument("--hours", type=float, default=defaults.hours, help="hours of speech to hear")
    parser.add_argument("--batch-s", type=float, default=defaults.batch_s, help="seconds of audio a step")
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument(
        "--save-every-s", type=float, default=defaults.save_every_s, help="seconds between saves"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    values = vars(parser.parse_args(arguments))
    out, run_folder = values.pop("out"), values.pop("run_folder")
    torch.set_num_threads(1)
    try:
        train(TrainingConfig(**values), run_folder, out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

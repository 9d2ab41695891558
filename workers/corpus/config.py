"""The `corpus` section of the run file."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mvqkd.workers.section import PathText, Section

LEAST_KEPT_S = 2.0
"""Of a window, between its overlaps."""
AS_IT_IS = (1.0,)
"""The speeds of a corpus that is not perturbed."""


class CorpusConfig(Section):
    """Where the audio and the transcripts are.

    `folder`: `root/transcripts.tsv` (header: id, split, speaker, text) and `root/audio/<split>/<id>.<ext>`;
    `train` and `test` name splits. `cuts`: `train` and `test` are Lhotse cut manifests (.jsonl, .jsonl.gz).
    `shar`: `train` and `test` are Lhotse Shar folders. Paths may be local or `s3://`, and `~` is the home
    folder; relative ones, those of the audio inside a manifest too, are under `root`. `channel` chooses one
    channel of audio that has several. `allow_upsampling` accepts audio below the teacher's sampling rate.

    `window_s`: audio without text that is longer than `max_duration_s` is cut into windows, of which the teacher hears
    at most so much, `window_overlap_s` on each side as context only. Manifests of recordings, and folders without
    transcripts, are taken too then.
    """

    format: Literal["folder", "cuts", "shar"] = "folder"
    root: PathText | None = None
    train: PathText = "train"
    test: PathText | None = "test"
    min_duration_s: Annotated[float, Field(gt=0)] = 0.1
    max_duration_s: Annotated[float, Field(gt=0)] = 30.0
    window_s: Annotated[float, Field(gt=0)] | None = None
    window_overlap_s: Annotated[float, Field(ge=0.2)] = 2.0
    channel: Annotated[int, Field(ge=0)] | None = None
    allow_upsampling: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format == "folder" and not self.root:
            raise ValueError("format 'folder' needs corpus.root, the folder that holds transcripts.tsv")
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError("min_duration_s must be below max_duration_s")
        if self.window_s is not None:
            self._check_windows(self.window_s)
        return self

    def _check_windows(self, window_s: float) -> None:
        if window_s > self.max_duration_s:
            raise ValueError(
                f"window_s {window_s:g} is more than max_duration_s {self.max_duration_s:g}, and the teacher hears a "
                "window whole: lower the first or raise the second"
            )
        if window_s - 2 * self.window_overlap_s < LEAST_KEPT_S:
            raise ValueError(
                f"window_s {window_s:g} leaves less than {LEAST_KEPT_S:g} s between two times window_overlap_s "
                f"{self.window_overlap_s:g}: raise the first or lower the second"
            )

    def plan_settings(
        self, part: Literal["train", "test"], *, sample_rate_hz: int, speeds: Sequence[float] = AS_IT_IS
    ) -> dict[str, object]:
        """What a plan of a part depends on besides the corpus itself. Where the corpus lies is not what it is.

        Args:
            sample_rate_hz, speeds: as of `Corpus`.
        """
        other = "test" if part == "train" else "train"
        # Plans from before there were windows hold no such settings, and are compared with these.
        windows = set() if self.window_s else {"window_s", "window_overlap_s"}
        corpus = self.model_dump(exclude={other, "root", *windows})
        settings: dict[str, object] = {"corpus": corpus, "part": part, "sample_rate_hz": sample_rate_hz}
        # As with windows: most plans have the cuts as they are, and say nothing of it.
        return settings if tuple(speeds) == AS_IT_IS else {**settings, "speeds": list(speeds)}

"""The `corpus` section of the run file."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mvqkd.workers.section import PathText, Section


class CorpusConfig(Section):
    """Where the audio and the transcripts are.

    `folder`: `root/transcripts.tsv` (header: id, split, speaker, text) and `root/audio/<split>/<id>.<ext>`;
    `train` and `test` name splits. `cuts`: `train` and `test` are Lhotse cut manifests (.jsonl, .jsonl.gz).
    `shar`: `train` and `test` are Lhotse Shar folders. Paths may be local or `s3://`, and `~` is the home
    folder; relative ones, those of the audio inside a manifest too, are under `root`. `channel` chooses one
    channel of audio that has several. `allow_upsampling` accepts audio below the teacher's sampling rate.
    """

    format: Literal["folder", "cuts", "shar"] = "folder"
    root: PathText | None = None
    train: PathText = "train"
    test: PathText | None = "test"
    min_duration_s: Annotated[float, Field(gt=0)] = 0.1
    max_duration_s: Annotated[float, Field(gt=0)] = 30.0
    channel: Annotated[int, Field(ge=0)] | None = None
    allow_upsampling: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format == "folder" and not self.root:
            raise ValueError("format 'folder' needs corpus.root, the folder that holds transcripts.tsv")
        if self.min_duration_s >= self.max_duration_s:
            raise ValueError("min_duration_s must be below max_duration_s")
        return self

    def plan_settings(self, part: Literal["train", "test"], *, sample_rate_hz: int) -> dict[str, object]:
        """What a plan of a part depends on besides the corpus itself. Where the corpus lies is not what it is."""
        other = "test" if part == "train" else "train"
        corpus = self.model_dump(exclude={other, "root"})
        return {"corpus": corpus, "part": part, "sample_rate_hz": sample_rate_hz}

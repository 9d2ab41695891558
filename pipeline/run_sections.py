"""The sections of a run file that belong to the driver: quantizer, extraction, tables, cluster, storage."""

from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from mvqkd.models.quantizer.fit_config import FitConfig, FitSettings
from mvqkd.workers.section import SPEED_ONLY, KeysOf, PathText, Section, Seed, Text

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Speed = Annotated[float, Field(ge=0.5, le=2.0)]
TargetKind = Literal["codes", "embeddings"]


def _in_order(speeds: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(speeds)) < len(speeds):
        raise ValueError(f"{list(speeds)} names a speed twice; each of them once")
    return tuple(sorted(speeds))


class QuantizerConfig(Section, FitSettings):  # type: ignore[misc]  # mypy does not see that sections are frozen
    """The multi-codebook quantizer and the sample that it is trained on.

    The keys of the fit are the fields of `FitSettings`; only what a table can hold is narrower here.
    """

    num_codebooks: Annotated[int, Field(ge=1, le=64)] = 8
    codebook_size: Literal[16, 256] = 256
    sample_hours: PositiveFloat = 20.0
    max_frames: PositiveInt = 400_000
    valid_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    seed: Seed = 1

    def fit_config(self) -> FitConfig:
        """How to fit, as `models.quantizer` takes it."""
        return FitConfig(
            **{field.name: getattr(self, field.name) for field in fields(FitSettings)}, seed=self.seed
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.__post_init__()
        return self

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Quantizers from before there was this key hold no such setting, and are compared with this.
        content: dict[str, Any] = handler(self)
        if content.get("max_seconds") is None:
            content.pop("max_seconds", None)
        return content


class ExtractConfig(Section):
    """How the corpus is cut into shards and how the actors work.

    `speeds`: every cut of the training part is extracted at each of them; 1.0 is the cut as it is.
    """

    shard_hours: PositiveFloat = 5.0
    speeds: Annotated[tuple[Speed, ...], Field(strict=False, min_length=1), AfterValidator(_in_order)] = (
        1.0,
    )
    search: Literal["fast", "full"] = "fast"
    batch_seconds: Annotated[PositiveFloat | Literal["auto"], SPEED_ONLY] = "auto"
    decode_threads: Annotated[PositiveInt, SPEED_ONLY] = 2
    actors: Annotated[PositiveInt | Literal["auto"], SPEED_ONLY] = "auto"
    gpus_per_actor: Annotated[Annotated[float, Field(ge=0)] | Literal["auto"], SPEED_ONLY] = "auto"
    cpus_per_actor: Annotated[PositiveFloat, SPEED_ONLY] = 1.0
    max_attempts: Annotated[PositiveInt, SPEED_ONLY] = 3
    shard_timeout_s: Annotated[PositiveFloat | None, SPEED_ONLY] = None
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = 0.2
    hours_per_worker_hour: Annotated[PositiveFloat | None, SPEED_ONLY] = None


class TableConfig(Section):
    """The index table; its folder is `<storage.root>/table` unless `path` says otherwise.

    `target`: what it holds for every frame, the codes of a quantizer or the teacher's embeddings as float16.
    """

    path: PathText | None = None
    target: TargetKind = "codes"


class TableOverrides(Section):
    """One more table out of the same pass of the teacher: in which layer, keys of `quantizer`, search and target it
    differs from the first one."""

    layer: PositiveInt | None = None
    quantizer: Annotated[dict[str, Any], KeysOf(QuantizerConfig)] = Field(default={})
    search: Literal["fast", "full"] | None = None
    target: TargetKind | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.target == "embeddings" and (self.quantizer or self.search is not None):
            raise ValueError("a table of embeddings has no quantizer; remove `quantizer` and `search`")
        return self


class ClusterConfig(Section):
    """Where stages run: `local` starts a Ray in this process, `auto` joins the one this process belongs to, an address
    joins that one, and `none` does without Ray: all work is done in this process."""

    address: Text = "local"
    num_cpus: PositiveInt | None = None


class StorageConfig(Section):
    """Where all results go: a folder or an `s3://bucket/prefix`. Keys and secrets come from the environment."""

    root: PathText
    endpoint_url: Text | None = None
    region: Text | None = None

    @property
    def options(self) -> dict[str, str]:
        """Non-secret options of the object store, for `storage.open_location`."""
        return {k: v for k, v in (("endpoint_url", self.endpoint_url), ("region", self.region)) if v}

"""The contract of codes that others made: what they say themselves, what the quantizer says, what a person has to.

Nothing is guessed: a wrong teacher, rate or offset is found by nobody later.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from mvqkd.models.quantizer import load_reference_checkpoint, quantizer_to_arrays
from mvqkd.storage.artifacts import save_artifact
from mvqkd.storage.contract import TableContract
from mvqkd.storage.errors import ContractError
from mvqkd.storage.location import Location, open_location
from mvqkd.workers.quantizer_record import NAME, load_quantizer

QUANTIZER_FOLDER = "_quantizer"
"""In an imported table: tools that read tables pass over folders that begin with `_`."""
SEARCH = "imported"
"""How the codes were searched, where nobody says: no name of a search that extraction knows, so that no table holds
codes of two kinds."""
_OPTIONS = {
    "teacher_fingerprint": "--teacher-fingerprint (of the weights, say their SHA-256)",
    "teacher_name": "--teacher-name",
    "layer": "--layer",
    "quantizer_id": "--quantizer (its file or folder) or --quantizer-id",
    "codebook_size": "--quantizer or --codebook-size",
    "frame_rate_hz": "--frame-rate",
    "frame_offset_s": "--frame-offset (seconds from a cut's start to the middle of its first frame; HuBERT: 0.0125)",
    "sample_rate_hz": "--sample-rate (that the teacher takes)",
}


@dataclass(frozen=True, kw_only=True)
class KnownFacts:
    """Fields of a `TableContract` that are known, None for the others, and the codes' quantizer, if it is there."""

    teacher_fingerprint: str | None = None
    teacher_name: str | None = None
    layer: int | None = None
    quantizer_id: str | None = None
    num_codebooks: int | None = None
    codebook_size: int | None = None
    frame_rate_hz: float | None = None
    frame_offset_s: float | None = None
    sample_rate_hz: int | None = None
    search: str | None = None

    def and_from(self, where: str, **found: Any) -> "KnownFacts":
        """These and other facts.

        Raises:
            ContractError: the two say different things; names `where` the others are from.
        """
        for name, value in found.items():
            mine = getattr(self, name)
            same = mine == value or (isinstance(mine, float) and abs(mine - value) < 1e-6 * abs(mine))
            if mine is not None and not same:
                raise ContractError(
                    f"{where}: {name} is {value!r}, but {mine!r} was given; correct the option or leave it out"
                )
        # Of two that are the same, what was given is without the rounding of a frame shift.
        return replace(self, **{name: value for name, value in found.items() if getattr(self, name) is None})

    def contract(self) -> TableContract:
        """The contract.

        Raises:
            ContractError: something is not known; says which options tell it.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["search"] = values["search"] or SEARCH
        missing = [_OPTIONS.get(name, name) for name, value in values.items() if value is None]
        if missing:
            raise ContractError(
                f"what made these codes is not all known, and is not guessed; give {'; '.join(missing)}"
            )
        return TableContract(**values)


@dataclass(frozen=True, kw_only=True)
class GivenQuantizer:
    """A quantizer as arrays with what describes them, as `storage.artifacts` keeps them, and the facts it tells."""

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any]
    facts: Mapping[str, Any]
    where: str

    def save(self, table: Location) -> None:
        """Keep it with a table; one that is there is of the same contract, so it is the same."""
        folder = table.join(QUANTIZER_FOLDER)
        if not folder.exists(f"{NAME}.json"):
            save_artifact(folder, NAME, self.arrays, self.metadata)


def read_quantizer(path: str, options: Mapping[str, Any]) -> GivenQuantizer:
    """A quantizer: a checkpoint of `multi_quantization` or SPEAR (`.pt`), or a folder that `mvqkd fit` wrote.

    Raises:
        ValueError, FileNotFoundError, ArtifactError: it is none.
    """
    if path.endswith((".pt", ".pth", ".bin")):
        quantizer = load_reference_checkpoint(Path(path).expanduser())
        arrays, metadata = quantizer_to_arrays(quantizer)
        facts: dict[str, Any] = {}
    else:
        location = open_location(path, options=options if path.startswith("s3://") else {})
        quantizer, record = load_quantizer(location)
        arrays, metadata = quantizer_to_arrays(quantizer)
        of_record = record.contract(search="full")
        names = ("teacher_fingerprint", "teacher_name", "layer", "frame_rate_hz", "frame_offset_s",
                 "sample_rate_hz")  # fmt: skip
        facts = {name: getattr(of_record, name) for name in names}
    facts |= {
        "quantizer_id": metadata["id"],
        "num_codebooks": metadata["num_codebooks"],
        "codebook_size": metadata["codebook_size"],
    }
    return GivenQuantizer(arrays=arrays, metadata=metadata, facts=facts, where=path)

"""What a table's codes or embeddings mean: the teacher, layer and quantizer of them, the time of each frame."""

import hashlib
import math
from dataclasses import asdict, dataclass, fields

from mvqkd.storage.errors import ContractError
from mvqkd.storage.strict_json import canonical_json, parse_json

SCHEMA_VERSION = 1
CODES, EMBEDDINGS = "codes", "embeddings"
"""What a table can hold for every frame."""


@dataclass(frozen=True, kw_only=True)
class TableContract:
    """Identity of the codes, or embeddings, in an index table; tables may be mixed only when all fields agree.

    Attributes:
        schema_version: version of the row columns (`storage.rows`).
        teacher_fingerprint: digest over the teacher's weights, configuration, layer, dtype, normalization.
        teacher_name: name for people.
        layer: number of transformer layers the embedding went through.
        quantizer_id: digest of the quantizer; empty without one.
        num_codebooks: N, codes (bytes) per frame; 0 of embeddings.
        codebook_size: entries per codebook, 2 to 256; 0 of embeddings.
        frame_rate_hz: frames per second of (perturbed) audio.
        frame_offset_s: time of the middle of frame 0, in seconds from the start of the cut; frame t is
            centred at `frame_offset_s + t / frame_rate_hz`. HuBERT (window 400, hop 320 samples at 16 kHz):
            0.0125.
        sample_rate_hz: the teacher's sample rate, the unit of a row's `num_samples`.
        search: how the codes of a frame were searched, a name that the quantizer knows. Tables from before there was
            a choice have `full`, and no such field in their contract.
        payload: "codes", or "embeddings": the layer's output as float16. Tables of codes have no such field.
        dim: D, numbers of an embedding; 0 of codes, which have no such field.

    Raises:
        ContractError: a field has the wrong type or an impossible value.
    """

    schema_version: int = SCHEMA_VERSION
    teacher_fingerprint: str
    teacher_name: str
    layer: int
    quantizer_id: str = ""
    num_codebooks: int = 0
    codebook_size: int = 0
    frame_rate_hz: float
    frame_offset_s: float
    sample_rate_hz: int
    search: str = "full"
    payload: str = CODES
    dim: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value, expected = getattr(self, item.name), item.type
            if expected is float and type(value) is int and abs(value) < 2**53:
                object.__setattr__(self, item.name, float(value))
            elif type(value) is not expected:
                wanted = getattr(expected, "__name__", expected)
                raise ContractError(f"table contract: {item.name} must be of type {wanted}, not {value!r}")
        coded = self.payload == CODES
        limits = {
            "schema_version": self.schema_version >= 1,
            "payload": self.payload in (CODES, EMBEDDINGS),
            "dim": self.dim == 0 if coded else self.dim >= 1,
            "layer": self.layer >= 0,
            "quantizer_id": coded or self.quantizer_id == "",
            "num_codebooks": self.num_codebooks >= 1 if coded else self.num_codebooks == 0,
            "codebook_size": 2 <= self.codebook_size <= 256 if coded else self.codebook_size == 0,
            "frame_rate_hz": math.isfinite(self.frame_rate_hz) and self.frame_rate_hz > 0,
            "frame_offset_s": math.isfinite(self.frame_offset_s),
            "sample_rate_hz": self.sample_rate_hz > 0,
            "search": self.search != "" if coded else self.search == "full",
        }
        for name, good in limits.items():
            if not good:
                raise ContractError(
                    f"table contract: {name} has the impossible value {getattr(self, name)!r}"
                )

    @property
    def bytes_per_frame(self) -> int:
        """Of the payload, before compression."""
        return self.num_codebooks if self.payload == CODES else 2 * self.dim

    def to_json(self) -> str:
        """One line of JSON, the same for equal contracts."""
        values = asdict(self)
        if values["search"] == "full":
            del values["search"]
        return canonical_json({name: values[name] for name in values if name in _FIELDS[self.payload]})

    @classmethod
    def from_json(cls, text: str, *, where: str = "table contract") -> "TableContract":
        """The contract written by `to_json`. Raises `ContractError`, naming `where`, for anything else."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ContractError(f"{where}: the table contract is not JSON ({error})") from error
        payload = values.get("payload", CODES) if isinstance(values, dict) else None
        # Of codes it is not written, of another version nothing is known.
        names = _FIELDS[EMBEDDINGS if payload == EMBEDDINGS else CODES]
        if not isinstance(values, dict) or {*values, "search"} != names | {"search"}:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ContractError(
                f"{where}: the table contract has the fields {found}, not {sorted(names)}; "
                "it was written by another version of this program: use that one, or extract again"
            )
        try:
            contract = cls(**values)
        except ContractError as error:
            raise ContractError(f"{where}: {error}; write the file again") from error
        if contract.schema_version != SCHEMA_VERSION:
            raise ContractError(
                f"{where}: the columns are of version {contract.schema_version}, this program knows version "
                f"{SCHEMA_VERSION}; use the program that wrote them, or extract again"
            )
        return contract

    def digest(self) -> str:
        """SHA-256 over the contract, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def require_payload(self, payload: str, *, where: str) -> None:
        """Raise `ContractError`, naming `where`, for a table that holds something else."""
        if self.payload != payload:
            holds = f"{EMBEDDINGS} ({self.dim} numbers a frame)" if self.payload == EMBEDDINGS else CODES
            raise ContractError(
                f"{where}: this table holds {holds}, and {payload} are asked for; name a table that was extracted with "
                f"target: {payload}"
            )

    def require_same(self, other: "TableContract", *, where: str) -> None:
        """Raise `ContractError` when `other`, found at `where`, differs from this contract."""
        other.require_payload(self.payload, where=where)
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if mine != theirs:
                raise ContractError(
                    f"{where}: made with {item.name} = {theirs!r}, but {mine!r} is expected; codes of "
                    "different teachers, layers or quantizers do not mix; use another folder, or re-extract"
                )


_ALL = {item.name for item in fields(TableContract)}
# What is written of a contract; `search` may be left out of those of codes.
_FIELDS = {
    CODES: _ALL - {"payload", "dim"},
    EMBEDDINGS: _ALL - {"quantizer_id", "num_codebooks", "codebook_size", "search"},
}

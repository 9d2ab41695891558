"""One shard of a plan: what the plan knows of it, and the object that holds its cuts."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mvqkd.storage.location import Location
from mvqkd.workers.cuts import cut_from_json, cut_to_json

if TYPE_CHECKING:
    from lhotse import MonoCut


_GZIP_LEVEL = 4
"""A seventh of the time that level 9 takes, which was more than all else in planning, for 14 % more bytes."""


class PlanError(ValueError):
    """A plan cannot be made or read; the message names the file or the cuts, and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """What the plan knows of a shard.

    `digest` names it: that of its cuts' JSON when it was planned first. `content` is the digest of the cuts' JSON
    in the object `path`, relative to the plan's folder; it differs from `digest` where an earlier version planned
    the same cuts in another form.
    """

    position: int
    path: str
    digest: str
    content: str
    num_cuts: int
    hours: float

    def name(self, contract_digest: str) -> str:
        """Name of the shard in the index table of a contract: position and digest, nothing that changes
        from one run of the same job to the next."""
        both = hashlib.sha256(f"{self.digest}/{contract_digest}".encode()).hexdigest()
        return f"shard-{self.position:06d}-{both[:12]}"

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def path_of(position: int, content: str) -> str:
    """The object of a shard's cuts, in the plan's folder."""
    return f"cuts-{position:06d}-{content[:12]}.jsonl.gz"


def write_shard_cuts(plan: Location, position: int, cuts: Sequence["MonoCut"]) -> Shard:
    """Write the cuts of one shard into the plan's folder; the same cuts give the same bytes and name."""
    hours = sum(cut.duration for cut in cuts) / 3600
    return write_shard(plan, position, [cut_to_json(cut) for cut in cuts], hours)


def read_shard_cuts(plan: Location, shard: Shard) -> Iterator["MonoCut"]:
    """The cuts of a shard, in plan order.

    Raises:
        StorageError: the plan's object is gone.
        PlanError: the object is not what the plan says.
    """
    for line in read_shard(plan, shard):
        yield cut_from_json(line)


def write_shard(
    plan: Location, position: int, lines: Sequence[str], hours: float, *, known: str | None = None
) -> Shard:
    """Write the cuts of one shard, a line of JSON each; `known` names the shard in the place of its content."""
    content = digest_of(lines)
    path = path_of(position, content)
    packed = io.BytesIO()
    # No time stamp and no name in the gzip header: the same bytes every time.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="", compresslevel=_GZIP_LEVEL) as file:
        file.write(_text(lines))
    plan.write_once(path, packed.getvalue())
    return Shard(
        position=position,
        path=path,
        digest=known or content,
        content=content,
        num_cuts=len(lines),
        hours=hours,
    )


def read_shard(plan: Location, shard: Shard) -> list[str]:
    """The lines of a shard; raises as `read_shard_cuts`."""
    where, packed = plan.full_url(shard.path), plan.read_bytes(shard.path)
    try:
        text = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise PlanError(
            f"{where}: damaged since it was planned ({error}); delete the plan and plan again"
        ) from error
    if hashlib.sha256(text).hexdigest() != shard.content:
        raise PlanError(f"{where}: changed since it was planned; delete the plan and plan again")
    # Not splitlines: transcripts may hold characters that it takes for line ends, such as U+2028.
    return text.decode().split("\n")[:-1]


def _text(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def digest_of(lines: Sequence[str]) -> str:
    """SHA-256 of a shard's content."""
    return hashlib.sha256(_text(lines)).hexdigest()

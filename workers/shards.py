"""A planned shard: consecutive cuts in one gzipped JSONL object, named by position and content."""

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from lhotse import MonoCut
from lhotse.serialization import deserialize_item

from storage.filesystem import Location


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the plan knows of a shard.

    `digest` is over the cuts' JSON; `path` is the object with the cuts, relative to the plan's folder.
    """

    position: int
    path: str
    digest: str
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


def cut_to_json(cut: MonoCut) -> str:
    """One line of JSON, the same for equal cuts."""
    return json.dumps(cut.to_dict(), ensure_ascii=False, separators=(",", ":"))


def cut_from_json(line: str) -> MonoCut:
    """The cut of one line."""
    cut = deserialize_item(json.loads(line))
    assert isinstance(cut, MonoCut), type(cut)
    return cut


def write_shard_cuts(plan: Location, position: int, cuts: Sequence[MonoCut]) -> Shard:
    """Write the cuts of one shard into the plan's folder; the same cuts give the same bytes and name."""
    text = "".join(cut_to_json(cut) + "\n" for cut in cuts).encode()
    digest = hashlib.sha256(text).hexdigest()
    path = f"cuts-{position:06d}-{digest[:12]}.jsonl.gz"
    packed = io.BytesIO()
    # No time stamp and no name in the gzip header: the same bytes every time.
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0, filename="") as file:
        file.write(text)
    plan.write_once(path, packed.getvalue())
    hours = sum(cut.duration for cut in cuts) / 3600
    return Shard(position=position, path=path, digest=digest, num_cuts=len(cuts), hours=hours)


def read_shard_cuts(plan: Location, shard: Shard) -> Iterator[MonoCut]:
    """The cuts of a shard, in plan order.

    Raises:
        StorageError: the plan's object is gone.
        ValueError: the object is not what the plan says.
    """
    where, packed = plan.full_url(shard.path), plan.read_bytes(shard.path)
    try:
        text = gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{where}: damaged since it was planned ({error}); delete the plan and plan again"
        ) from error
    if hashlib.sha256(text).hexdigest() != shard.digest:
        raise ValueError(f"{where}: changed since it was planned; delete the plan and plan again")
    # Not splitlines: transcripts may hold characters that it takes for line ends, such as U+2028.
    for line in text.decode().split("\n")[:-1]:
        yield cut_from_json(line)

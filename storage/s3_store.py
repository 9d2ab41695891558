"""Objects in an S3 bucket through s3fs: one PUT or GET for a whole object, so none is ever seen torn."""

import builtins
import time
from collections.abc import Mapping
from typing import Any

import s3fs
from fsspec.asyn import sync
from s3fs.core import S3_RETRYABLE_ERRORS

from mvqkd.storage.entry import Entry
from mvqkd.storage.errors import (
    ObjectMissingError,
    ObjectTooShortError,
    StorageError,
)
from mvqkd.storage.ranged_file import RangedFile
from mvqkd.storage.s3_errors import error_code, translated
from mvqkd.storage.s3_gets import S3Gets

_MAX_PUT_BYTES = 5 * 2**30
_ATTEMPTS = 5
_BROKEN_BODY_WAITS_S = (0.2, 1.0, 5.0)
_CONFLICT_WAITS_S = (0.1, 0.3, 1.0, 3.0)
_EXISTS_CODES = {"PreconditionFailed", "412"}
_BEYOND_CODES = {"InvalidRange", "416"}
_CONFLICT_CODES = {"ConditionalRequestConflict", "OperationAborted", "409"}


class S3Store:
    """Reads and writes objects; `path` arguments are `bucket/key`.

    Build it in the process that uses it: the connections and the event loop thread of s3fs do not survive a
    fork. botocore retries 5xx, SlowDown and broken connections with the adaptive client-side rate limit; s3fs
    repeats that five times for SlowDown, so a throttled job waits for minutes before it gives up. GETs go
    through `S3Gets` where that can do them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        client_kwargs = {"region_name": options["region"]} if "region" in options else {}
        self.filesystem = s3fs.S3FileSystem(
            **{name: value for name, value in options.items() if name != "region"},
            client_kwargs=client_kwargs,
            config_kwargs={
                "retries": {"mode": "adaptive", "total_max_attempts": _ATTEMPTS},
                "connect_timeout": 10,
                "read_timeout": 60,
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self._gets = S3Gets(self.filesystem, options)

    def exists(self, path: str) -> bool:
        """Whether the object is there (a missing bucket also answers False: HEAD cannot tell)."""
        try:
            self._head(path)
        except ObjectMissingError:
            return False
        return True

    def size(self, path: str) -> int:
        """Bytes of the object. Raises `ObjectMissingError` or `StorageError`."""
        num_bytes: int = self._head(path)["ContentLength"]
        return num_bytes

    def read(self, path: str) -> bytes:
        """The whole object in one GET. Raises `ObjectMissingError` or `StorageError`."""
        data = self._gets.get(*_split(path))
        return self._get(path)[0] if data is None else data

    def read_range(self, path: str, start: int, end: int, *, version: str | None = None) -> bytes:
        """The bytes from `start` to `end` (exclusive) in one GET; of this version (an ETag) if one is named.

        Raises:
            ObjectTooShortError: the object ends before; `ObjectMissingError` or `StorageError` for the rest.
        """
        if start == end:
            return b""
        if version is None:
            found = self._gets.get(*_split(path), start, end)
            if found is not None and len(found) == end - start:
                return found
        condition = {} if version is None else {"IfMatch": version}
        try:
            data, _ = self._get(path, Range=f"bytes={start}-{end - 1}", **condition)
        except StorageError as error:
            code = error_code(error.__cause__)
            if code in _BEYOND_CODES:
                raise _too_short(path, end) from error
            if code in _EXISTS_CODES:
                raise StorageError(
                    f"s3://{path}", "it was replaced while it was read", "run the same command again"
                ) from error
            raise
        if len(data) != end - start:
            raise _too_short(path, end)
        return data

    def open(self, path: str, *, head: int = 0, tail: int = 0) -> RangedFile:
        """A file whose reads are ranged GETs of one version of the object.

        Args:
            path: the object.
            head, tail: one of them: how many bytes of the start, or of the end, come with the opening.

        Raises:
            ObjectMissingError, StorageError: now or at any read.
        """
        try:
            data, answer = self._get(path, Range=f"bytes=-{tail}" if tail else f"bytes=0-{head - 1}")
        except StorageError as error:
            if error_code(error.__cause__) not in _BEYOND_CODES:
                raise
            data, answer = b"", {}  # no range of an empty object can be had
        # "bytes 0-99/1234"; a server without ranges sends the whole and no such header.
        size = int(answer.get("ContentRange", f"/{len(data)}").rpartition("/")[2])
        version = answer.get("ETag")
        return RangedFile(
            lambda start, end: self.read_range(path, start, end, version=version),
            size,
            kept=(size - len(data) if tail else 0, data),
        )

    def write_once(self, path: str, data: bytes) -> bool:
        """PUT with `If-None-Match: *`: commits unless something is committed; True when this call did it."""
        for wait_s in (*_CONFLICT_WAITS_S, None):
            try:
                with translated(path):
                    self._put(path, data, IfNoneMatch="*")
                return True
            except StorageError as error:
                code = error_code(error.__cause__)
                if code in _EXISTS_CODES:
                    return False
                if code not in _CONFLICT_CODES or wait_s is None:
                    raise
            # Another writer of the same name is under way; when it ends the next PUT says "exists".
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def replace(self, path: str, data: bytes) -> None:
        """PUT over whatever is there."""
        with translated(path):
            self._put(path, data)

    def list(self, path: str) -> dict[str, Entry]:
        """The objects directly under the prefix by name; may be empty."""
        bucket, key = _split(path)
        prefix = f"{key}/" if key else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        found: dict[str, Entry] = {}
        with translated(path):
            while True:
                page = self.filesystem.call_s3("list_objects_v2", **request)
                for entry in page.get("Contents", ()):
                    if entry["Key"] != prefix:
                        written = entry["LastModified"].timestamp()
                        found[entry["Key"].removeprefix(prefix)] = Entry(entry["Size"], written)
                if not page.get("IsTruncated"):
                    return dict(sorted(found.items()))
                request["ContinuationToken"] = page["NextContinuationToken"]

    def names(self, path: str) -> "builtins.list[str]":
        """The names alone, by the same requests."""
        return [*self.list(path)]

    def remove(self, path: str) -> None:
        """Delete the object; nothing happens when it is not there."""
        bucket, key = _split(path)
        with translated(path):
            self.filesystem.call_s3("delete_object", Bucket=bucket, Key=key)

    def sweep(self, path: str) -> int:
        """Nothing to do: an interrupted PUT leaves nothing behind."""
        return 0

    def _head(self, path: str) -> dict[str, Any]:
        bucket, key = _split(path)
        try:
            with translated(path):
                return self.filesystem.call_s3("head_object", Bucket=bucket, Key=key)
        except StorageError as error:
            # What is refused has a body that says why, but not the answer to a HEAD.
            if error_code(error.__cause__) in {"400", "401", "403"}:
                self._get(path, Range="bytes=0-0")
            raise

    def _get(self, path: str, **request: str) -> tuple[bytes, dict[str, Any]]:
        """Bytes and headers of one GET, so that all bytes are of one version of the object."""
        bucket, key = _split(path)
        with translated(path):
            for wait_s in (*_BROKEN_BODY_WAITS_S, None):
                answer = self.filesystem.call_s3("get_object", Bucket=bucket, Key=key, **request)
                body = answer.pop("Body")
                try:
                    return sync(self.filesystem.loop, body.read), answer
                # call_s3 asks again when a request fails, but does not see a body that breaks off.
                except S3_RETRYABLE_ERRORS:
                    if wait_s is None:
                        raise
                    time.sleep(wait_s)
                finally:
                    body.close()
        raise AssertionError("unreachable")

    def _put(self, path: str, data: bytes, **conditions: str) -> None:
        if len(data) > _MAX_PUT_BYTES:
            raise StorageError(
                f"s3://{path}", f"{len(data)} bytes are more than one PUT takes (5 GiB)", "use smaller shards"
            )
        bucket, key = _split(path)
        self.filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **conditions)


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key


def _too_short(path: str, end: int) -> ObjectTooShortError:
    return ObjectTooShortError(
        f"s3://{path}", f"the object ends before byte {end}", "it was replaced by another one, or cut short"
    )

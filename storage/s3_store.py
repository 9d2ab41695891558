"""Objects in an S3 bucket through s3fs: one PUT or GET for a whole object, so none is ever seen torn."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import botocore.exceptions  # type: ignore[import-untyped]
import s3fs

from mvqkd.storage.errors import ObjectMissingError, StorageError

_MAX_PUT_BYTES = 5 * 2**30
_ATTEMPTS = 5
_CONFLICT_WAITS_S = (0.1, 0.3, 1.0, 3.0)
_EXISTS_CODES = {"PreconditionFailed", "412"}
_CONFLICT_CODES = {"ConditionalRequestConflict", "OperationAborted", "409"}
_REFUSED_CODES = {
    "403", "401", "AccessDenied", "AllAccessDisabled", "ExpiredToken", "Forbidden", "InvalidAccessKeyId",
    "InvalidToken", "SignatureDoesNotMatch", "RequestTimeTooSkewed",
}  # fmt: skip
_BUSY_CODES = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "500",
    "502",
    "503",
    "504",
}


class S3Store:
    """Reads and writes objects; `path` arguments are `bucket/key`.

    Build it in the process that uses it: the connections and the event loop thread of s3fs do not survive a
    fork. botocore retries 5xx, SlowDown and broken connections with the adaptive client-side rate limit; s3fs
    repeats that five times for SlowDown, so a throttled job waits for minutes before it gives up.
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

    def exists(self, path: str) -> bool:
        """Whether the object is there (a missing bucket also answers False: HEAD cannot tell)."""
        bucket, key = _split(path)
        try:
            with _translated(path):
                self.filesystem.call_s3("head_object", Bucket=bucket, Key=key)
        except ObjectMissingError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """The whole object in one GET. Raises `ObjectMissingError` or `StorageError`."""
        with _translated(path):
            # One request instead of HEAD and ranges: one version of the object, and an error with its code.
            return self.filesystem.cat_file(path, max_concurrency=1)

    def write_once(self, path: str, data: bytes) -> bool:
        """PUT with `If-None-Match: *`: commits unless something is committed; True when this call did it."""
        for wait_s in (*_CONFLICT_WAITS_S, None):
            try:
                with _translated(path):
                    self._put(path, data, IfNoneMatch="*")
                return True
            except StorageError as error:
                code = _error_code(error.__cause__)
                if code in _EXISTS_CODES:
                    return False
                if code not in _CONFLICT_CODES or wait_s is None:
                    raise
            # Another writer of the same name is under way; when it ends the next PUT says "exists".
            time.sleep(wait_s)
        raise AssertionError("unreachable")

    def replace(self, path: str, data: bytes) -> None:
        """PUT over whatever is there."""
        with _translated(path):
            self._put(path, data)

    def list(self, path: str) -> dict[str, int]:
        """Names of the objects directly under the prefix and their sizes in bytes; may be empty."""
        bucket, key = _split(path)
        prefix = f"{key}/" if key else ""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
        sizes: dict[str, int] = {}
        with _translated(path):
            while True:
                page = self.filesystem.call_s3("list_objects_v2", **request)
                for entry in page.get("Contents", ()):
                    if entry["Key"] != prefix:
                        sizes[entry["Key"].removeprefix(prefix)] = entry["Size"]
                if not page.get("IsTruncated"):
                    return dict(sorted(sizes.items()))
                request["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, path: str) -> None:
        """Delete the object; nothing happens when it is not there."""
        bucket, key = _split(path)
        with _translated(path):
            self.filesystem.call_s3("delete_object", Bucket=bucket, Key=key)

    def sweep(self, path: str) -> int:
        """Nothing to do: an interrupted PUT leaves nothing behind."""
        return 0

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


def _error_code(error: BaseException | None) -> str:
    """The S3 error code behind an exception of s3fs or botocore, or ''."""
    while error is not None:
        response = getattr(error, "response", None)
        if response:
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Turn errors of botocore and s3fs into `StorageError`s that name the object and the remedy."""
    url = f"s3://{path}"
    try:
        yield
    except botocore.exceptions.NoCredentialsError as error:
        raise StorageError(
            url, "no credentials found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in this process"
        ) from error
    except (OSError, botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
        code = _error_code(error)
        if code == "NoSuchBucket":
            bucket = _split(path)[0]
            raise StorageError(
                url, f"bucket {bucket!r} does not exist", "create it or correct the bucket in the url"
            ) from error
        if code in {"NoSuchKey", "404", "NotFound"}:
            raise ObjectMissingError(
                url, "there is no such object", "check the url or run the stage before"
            ) from error
        if code in _REFUSED_CODES:
            raise StorageError(
                url,
                f"the server refused the credentials ({code})",
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights of this key on the bucket",
            ) from error
        if code in _BUSY_CODES:
            raise StorageError(
                url,
                f"the server kept answering {code}",
                "run again later, or with fewer workers",
            ) from error
        if code in {"NotImplemented", "501"}:
            raise StorageError(
                url, "the server lacks conditional writes (If-None-Match)", "use a store that has them"
            ) from error
        if code:
            raise StorageError(
                url, f"the server answered {code} ({error})", "see the server's log"
            ) from error
        raise StorageError(
            url,
            f"the S3 endpoint cannot be reached ({type(error).__name__})",
            "check endpoint_url or AWS_ENDPOINT_URL, the network, and that the server runs",
        ) from error

"""What goes wrong in S3, as `StorageError`s that name the object and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions  # type: ignore[import-untyped]
from s3fs.core import S3_RETRYABLE_ERRORS

from mvqkd.storage.errors import BucketMissingError, ObjectMissingError, StorageError, StoreOutageError

_REFUSED_CODES = {"403", "401", "AccessDenied", "AllAccessDisabled", "Forbidden"}
# Of the key itself, whatever is asked for with it.
_INVALID_CODES = {
    "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "RequestTimeTooSkewed",
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


def error_code(error: BaseException | None) -> str:
    """The S3 error code behind an exception of s3fs or botocore, or ''."""
    while error is not None:
        response = getattr(error, "response", None)
        if response:
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__
    return ""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn errors of botocore and s3fs into `StorageError`s that name the object and the remedy."""
    url = f"s3://{path}"
    try:
        yield
    except UnicodeEncodeError as error:
        raise ObjectMissingError(repr(url), "no object can have this name", "correct the url") from error
    except botocore.exceptions.NoCredentialsError as error:
        raise StoreOutageError(
            url, "no credentials found", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in this process"
        ) from error
    except (
        OSError,
        botocore.exceptions.ClientError,
        botocore.exceptions.BotoCoreError,
        *S3_RETRYABLE_ERRORS,
    ) as error:
        code = error_code(error)
        if code == "NoSuchBucket":
            bucket = path.partition("/")[0]
            raise BucketMissingError(
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
        if code in _INVALID_CODES:
            raise StoreOutageError(
                url,
                f"the server refused the credentials ({code})",
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, whether they have expired, and this host's clock",
            ) from error
        if code in _BUSY_CODES:
            raise StoreOutageError(
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
        raise StoreOutageError(
            url,
            f"the S3 endpoint cannot be reached ({type(error).__name__})",
            "check endpoint_url or AWS_ENDPOINT_URL, the network, and that the server runs",
        ) from error

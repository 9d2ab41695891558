"""GETs of S3 objects through obstore, which spends a seventh of the processor time of s3fs on each.

An utterance is a GET of its own, and a GPU hears hundreds in a second: s3fs, which is Python, has one core for all of
them and cannot feed it. Only what goes well is answered here. Whatever does not, s3fs asks for again, with its retries,
its rate limit, and the words of `s3_errors`.
"""

import os
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import botocore.credentials  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
import s3fs
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3CredentialProvider

_REST_S = 10.0
# Rust's runtime is one for the process, and a fork has none of its threads: calls in a child would wait for ever.
_RUNTIME_OF: list[int] = []
# Credentials that are renewed are asked for again after this time less five minutes; botocore renews its own in time.
_CREDENTIALS_FOR = timedelta(minutes=15)


class S3Gets:
    """Whole objects and ranges, by several threads at a time.

    Args:
        filesystem: whose endpoint and region are taken.
        options: of the storage section, as s3fs got them.
    """

    def __init__(self, filesystem: s3fs.S3FileSystem, options: Mapping[str, Any]) -> None:
        self._filesystem, self._options = filesystem, options
        self._buckets: dict[str, Bucket] = {}
        self._lock = threading.Lock()
        self._rests_until = 0.0

    def get(self, bucket: str, key: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """The object, or its bytes from `start` to `end` (exclusive); None where s3fs is to ask.

        That is for some seconds after every trouble but a missing object, so that a store that throttles is not asked
        twice for everything.
        """
        if time.monotonic() < self._rests_until or _is_forked():
            return None
        try:
            opened = self._opened(bucket)
            if start is None or end is None:
                return opened.get(key).bytes().to_bytes()
            return opened.get_range(key, start=start, end=end).to_bytes()
        except FileNotFoundError:
            return None
        except (BaseError, botocore.exceptions.BotoCoreError, OSError, ValueError):
            self._rests_until = time.monotonic() + _REST_S
            return None

    def _opened(self, name: str) -> Bucket:
        with self._lock:
            if name not in self._buckets:
                self._buckets[name] = self._open(name)
            return self._buckets[name]

    def _open(self, name: str) -> Bucket:
        meta = self._filesystem.s3.meta
        anonymous = bool(self._options.get("anon"))
        return Bucket(
            name,
            endpoint=meta.endpoint_url,
            region=(meta.region_name or "us-east-1").replace("aws-global", "us-east-1"),
            virtual_hosted_style_request=False,
            skip_signature=anonymous,
            credential_provider=None if anonymous else _credentials(self._options),
            # What an object takes as a whole may be long.
            client_options={
                "allow_http": meta.endpoint_url.startswith("http://"),
                "connect_timeout": "10s",
                "read_timeout": "60s",
                "timeout": "1h",
            },
            retry_config={"max_retries": 0},
        )


def _is_forked() -> bool:
    if not _RUNTIME_OF:
        _RUNTIME_OF.append(os.getpid())
    return _RUNTIME_OF[0] != os.getpid()


def _credentials(options: Mapping[str, Any]) -> "S3CredentialProvider":
    """What obstore calls for credentials: those of the options, or from where botocore finds them."""
    session = botocore.session.get_session()
    if "key" in options:
        session.set_credentials(options["key"], options.get("secret"), options.get("token"))
    found = session.get_credentials()
    if found is None:
        raise botocore.exceptions.NoCredentialsError
    is_renewed = isinstance(found, botocore.credentials.RefreshableCredentials)

    def frozen() -> "S3Credential":
        now = found.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR if is_renewed else None,
        }

    return frozen

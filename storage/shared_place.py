"""Whether two processes see the same place. A local path is one place only on one machine, or where it is mounted."""

import socket

from mvqkd.storage.location import Location

NOT_SHARED = (
    "a local folder belongs to one machine. Give storage.root (and table.path, where it is set) a place that all "
    "machines share: s3://bucket/prefix, or a folder mounted under the same path on the driver and on all workers"
)


class SharedPlaceError(ValueError):
    """What one process wrote is not seen by another; the message says what a place is that all share."""


def require_seen(location: Location, path: str) -> None:
    """Check that this process sees an object that another process has written.

    An object store is the same for all who reach it, so only local folders are looked at.

    Raises:
        SharedPlaceError: it does not.
    """
    if location.is_local and not location.exists(path):
        raise SharedPlaceError(
            f"{location.full_url(path)}: another process of this run wrote it, but it is not seen on "
            f"{socket.gethostname()}: {NOT_SHARED}"
        )

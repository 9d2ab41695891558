"""Errors of the storage room. Each message names the object, what is wrong with it and what to do."""


class StorageError(ValueError):
    """An object store or folder refused an operation: bucket, credentials, endpoint, space, permissions."""

    def __init__(self, url: str, problem: str, remedy: str) -> None:
        super().__init__(f"{url}: {problem}; {remedy}")
        self.url, self.problem, self.remedy = url, problem, remedy

    def __reduce__(self) -> tuple[type["StorageError"], tuple[str, str, str]]:
        # A multi-argument exception does not survive pickling by default, and errors travel from workers.
        return type(self), (self.url, self.problem, self.remedy)


class ObjectMissingError(StorageError):
    """The object asked for does not exist."""


class StoreOutageError(StorageError):
    """The store serves nobody at the moment: it does not answer, is throttled or full, or takes no credentials.

    Nothing is wrong with what was asked for; the same may go well later.
    """


class BucketMissingError(StorageError):
    """The whole bucket does not exist: a wrong url, and no statement about one object."""


class ObjectTooShortError(StorageError):
    """The object ends before the range of bytes that was asked for."""


class ContractError(ValueError):
    """Two things that must come from the same teacher and quantizer do not."""


class TableError(ValueError):
    """An index table, one of its files or a row for it is unusable."""


class StaleCodesError(ValueError):
    """The audio of a cut is not the audio its codes were computed from."""


class ArtifactError(ValueError):
    """An artifact pair (`NAME.safetensors`, `NAME.json`) is incomplete, damaged or not acceptable."""

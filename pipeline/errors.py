"""What a command says and ends with when it cannot do its work; light, so that every command may import it."""

from typing import ClassVar


class ConfigError(ValueError):
    """The run file or an override is wrong; the message holds the key's path and a remedy."""


class StageError(RuntimeError):
    """A stage cannot do its work; the message says what is missing and which command makes it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does.

    Attributes:
        was_raised: in this process. Where Ray's own code is interrupted, it raises a KeyboardInterrupt of its own in
            the place of what the handler of the signal raised.
    """

    was_raised: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        Terminated.was_raised = True


class PoolError(RuntimeError):
    """No worker can start, so no item can be served; the message holds the last worker's error."""

"""What a command says and ends with when it cannot do its work; light, so that every command may import it."""


class ConfigError(ValueError):
    """The run file or an override is wrong; the message holds the key's path and a remedy."""


class StageError(RuntimeError):
    """A stage cannot do its work; the message says what is missing and which command makes it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does."""


class PoolError(RuntimeError):
    """No worker can start, so no item can be served; the message holds the last worker's error."""

"""Errors of the user's making: each message names the key, file or stage, what is wrong and what to do."""


class ConfigError(ValueError):
    """The run file or an override is wrong; the message holds the key's path and a remedy."""


class StageError(RuntimeError):
    """A stage cannot do its work; the message says what is missing and which command makes it."""

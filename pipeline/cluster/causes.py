"""What stands behind an error that Ray hands on."""

from ray.exceptions import RayError


def is_of(error: RayError, *kinds: type[Exception]) -> bool:
    """Whether the worker raised one of these."""
    return isinstance(getattr(error, "cause", None), kinds)


def cause_of(error: RayError) -> str:
    """One line: the exception that the worker raised, or what Ray says of its loss."""
    cause = getattr(error, "cause", None)
    shown = cause if isinstance(cause, BaseException) else error
    lines = [line.strip() for line in str(shown).splitlines() if line.strip()] or [""]
    if "creation task" in lines[0]:
        # The actor's constructor raised: the traceback's last line says what.
        return lines[-1]
    # Ray puts a long report behind the first line of a lost actor's message.
    return f"{type(shown).__name__}: {lines[0]}"

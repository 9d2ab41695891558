"""What a Ray of this process needs of the machine: a place for its sockets, a token, and nothing of `uv run`.

Each is arranged here where it can be, or refused with the variable's name. Both functions come before `ray.init` of a
local Ray; a cluster that is joined has its own environment.
"""

import contextlib
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mvqkd.pipeline.run_config import ClusterConfig

LONGEST_SOCKET = 107 if sys.platform.startswith("linux") else 103
"""Bytes of a socket's path that the operating system takes."""

# Of Ray 2.60: DIR/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store
_BELOW_TEMP_DIR = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")
LONGEST_TEMP_DIR = LONGEST_SOCKET - _BELOW_TEMP_DIR

SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def in_ray_job() -> bool:
    """Whether this process is the driver of a job that was submitted to a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def as_in_job(config: ClusterConfig) -> ClusterConfig:
    """What `cluster` means here: the driver of a job works on the cluster that runs the job, and `local`, which
    would start a second Ray on the head node, is that one."""
    return (
        config.model_copy(update={"address": "auto"})
        if config.address == "local" and in_ray_job()
        else config
    )


def check_local_environment() -> None:
    """Make a local Ray independent of the home folder and of `uv run`.

    Ray protects a local cluster by a token that it writes to `~/.ray`; where that cannot be, this process gets one that
    is written nowhere. Under `uv run` Ray would pack the working folder and build the environment anew for every
    worker, which on one machine is of no use and fails on large files.

    Raises:
        ConnectionError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    constants = sys.modules.get("ray._private.ray_constants")
    if constants is not None:  # Ray read the variable when it was imported
        wanted = os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"].lower() in ("1", "true")
        constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = wanted  # type: ignore[attr-defined]
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named:
        if not _is_readable(Path(named)):
            raise ConnectionError(
                f"RAY_AUTH_TOKEN_PATH: {named} cannot be read; unset it, or write the file with "
                "`ray get-auth-token --generate`"
            )
        return
    if not _home_has_or_takes_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _home_has_or_takes_token() -> bool:
    try:
        folder = Path.home() / ".ray"
    except RuntimeError:  # a user without a home, as in some containers
        return False
    token = folder / "auth_token"
    return _is_readable(token) if token.exists() else takes_files(folder)


def ray_temp_dir(fallbacks: Sequence[str] = SHORT_FOLDERS) -> str | None:
    """The folder for the sessions and sockets of a local Ray; None where the one that Ray takes is right.

    Ray takes `$RAY_TMPDIR/ray`, else `$TMPDIR/ray`, else `/tmp/ray`. A TMPDIR that a job scheduler made (too long
    for the path of a socket) or a `ray` folder of somebody else is replaced by a private folder in `fallbacks`.

    Raises:
        ConnectionError: RAY_TMPDIR, which names a place for Ray on purpose, cannot be used, or no place can.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    folder = Path(os.environ[variable] if variable else "/tmp") / "ray"  # Ray's own choice
    problem = _problem_of(folder)
    if problem is None:
        # An empty variable is taken by Ray for the working folder.
        return str(folder) if any(os.environ.get(name) == "" for name in ("RAY_TMPDIR", "TMPDIR")) else None
    if variable == "RAY_TMPDIR":
        raise ConnectionError(f"RAY_TMPDIR: {problem}; unset it, or set it to a short folder on a local disk")
    for base in fallbacks:
        private = _private_folder(Path(base))
        if private is not None:
            return str(private)
    places = ", ".join(fallbacks)
    raise ConnectionError(
        f"{variable or '/tmp'}: {problem}, and there is no place for a private folder in {places} either; set "
        "RAY_TMPDIR to a short folder on a local disk that you may write to"
    )


def _problem_of(folder: Path) -> str | None:
    if not folder.is_absolute():
        return f"{folder} is not an absolute path"
    length = len(os.fsencode(folder))
    if length > LONGEST_TEMP_DIR:
        return (
            f"{folder} is {length} bytes long, and the paths of Ray's sockets below it would be longer than the "
            f"{LONGEST_SOCKET} bytes that the operating system takes (at most {LONGEST_TEMP_DIR} do)"
        )
    return None if takes_files(folder) else f"{folder} cannot be written to"


def _private_folder(base: Path) -> Path | None:
    """A folder that only this user can reach, or None where there can be none. Ray opens its own folder to everybody,
    so that one lies inside."""
    folder = base / f"mvqkd-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # Somebody else may have put a folder or a link of this name there.
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
            inner = folder / "ray"
            return inner if _problem_of(inner) is None else None
    return None


def takes_files(folder: Path) -> bool:
    """Whether files can be written into the folder, which is made if there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError:
        return False
    return True


def _is_readable(file: Path) -> bool:
    try:
        return bool(file.read_bytes().strip())
    except OSError:
        return False

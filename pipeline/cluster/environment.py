"""What a Ray of this process needs of the machine: a place for its sockets, a token, closed doors.

Each is arranged here where it can be, or refused with the variable's name. `local_environment` and `ray_temp_dir` are
for a Ray that we start; a cluster that is joined has its own environment.
"""

import contextlib
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvqkd.pipeline.run_sections import ClusterConfig

LONGEST_SOCKET = 107 if sys.platform.startswith("linux") else 103
"""Bytes of a socket's path that the operating system takes."""

# Of Ray 2.60: DIR/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store
_BELOW_TEMP_DIR = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")
LONGEST_TEMP_DIR = LONGEST_SOCKET - _BELOW_TEMP_DIR

METRICS = "RAY_enable_metrics_collection"
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


@contextmanager
def local_environment() -> Iterator[None]:
    """The environment of a local Ray, whatever this process has; what was before is put back at the end.

    - Token authentication, so that nobody runs or reads anything without the token. It is the one that
      RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or `~/.ray/auth_token` names, else one that is written nowhere.
    - Every port on the loopback interface. Ray takes 127.0.0.1 for the node's address only where it does without
      clusters, as it does on macOS; elsewhere it turns it into the address that other machines reach, and listens on
      all interfaces.
    - No port for metrics, which has no authentication: RAY_enable_metrics_collection=1 brings it back, on loopback.
    - Nothing of `uv run`: Ray would pack the working folder and build the environment anew for every worker, which on
      one machine is of no use and fails on large files. RAY_ENABLE_UV_RUN_RUNTIME_ENV=1 brings it back.

    Raises:
        ConnectionError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    settings = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if not _has_token():
        settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    defaults = {METRICS: "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    if not _is_true(os.environ.get(METRICS, "0")):
        # Of the autoscaler and the dashboard, which have no such switch; they log that they cannot listen there.
        settings |= {"AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1"}
    settings |= {name: os.environ.get(name, value) for name, value in defaults.items()}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    _tell_ray()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _tell_ray()


def _tell_ray() -> None:
    """Ray reads these variables when it is imported."""
    constants: Any = sys.modules.get("ray._private.ray_constants")
    if constants is None:
        return
    constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = _is_true(os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "1"))
    constants.ENABLE_RAY_CLUSTER = _is_true(
        os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", str(not constants.IS_WINDOWS_OR_OSX))
    )
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _is_true(value: str) -> bool:
    return value.lower() in ("1", "true")


def _has_token() -> bool:
    """Whether Ray finds a token by itself."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named:
        if not _is_readable(Path(named)):
            raise ConnectionError(
                f"RAY_AUTH_TOKEN_PATH: {named} cannot be read; unset it, or write the file with "
                "`ray get-auth-token --generate`"
            )
        return True
    try:
        return _is_readable(Path.home() / ".ray" / "auth_token")
    except RuntimeError:  # a user without a home, as in some containers
        return False


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

"""A stage as a Ray job: what it takes along, under which name, its log, and its exit code.

The name of a job comes from the run and the stage, so a second submission of a job that runs is noticed: the same one
is followed, another one refused. No secret is in the command line or the runtime environment, which Ray logs and
shows: credentials come from the environment of the cluster.
"""

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from mvqkd.pipeline.errors import ConfigError
from mvqkd.pipeline.job_files import Job
from mvqkd.pipeline.show.progress import say

ANSWER_TIMEOUT_S = 10.0
ANSWER_TRIES = 5
LOOK_EVERY_S = 0.5
STOPPED = 128 + 15  # as a shell says of a process that was ended by SIGTERM
INTERRUPTED = 130
_CONTENT = "mvqkd_content"
_NAMED_TRIES = 3
# Of Ray, on standard error; what is uploaded and what becomes of the job is told by us.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)


class Jobs:
    """The jobs of a cluster, by the address of its dashboard.

    Raises:
        ConfigError: it is no such address.
        ConnectionError: nobody answers there, or not to this token.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        _check_answers(address)
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _told(address), _only_this_address():
            self._client = JobSubmissionClient(address)

    def submit(self, job: Job) -> tuple[str, bool]:
        """Submit the job unless it runs already; its submission id, and whether this call submitted it.

        The driver runs on the head node and takes neither GPUs nor CPUs from the workers.

        Raises:
            ConfigError: the same stage of this run is at work with other settings or another program.
        """
        for last in [False] * (_NAMED_TRIES - 1) + [True]:
            with _told(self._address):
                before = [info for info in self._client.list_jobs() if _is_of(info, job)]
            for info in before:
                if not info.status.is_terminal():
                    self._refuse_other(info, job)
                    return info.submission_id, False
            number = 1 + max((int(info.submission_id.rpartition("-")[2]) for info in before), default=0)
            try:
                return self._submit(job, f"{job.prefix}{number}"), True
            except RuntimeError as error:
                # Another submission may have taken the number since the listing.
                if last or "already exists" not in str(error):
                    raise ConnectionError(f"{self._address}: {_first_line(error)}") from error
        raise AssertionError("unreachable")

    def _submit(self, job: Job, name: str) -> str:
        with tempfile.TemporaryDirectory(prefix="mvqkd-job-") as folder:
            job.files.copy_to(Path(folder))
            return self._client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=name,
                runtime_env={"working_dir": folder},
                metadata={_CONTENT: job.content(), "mvqkd_run": " ".join(job.place)},
                entrypoint_num_cpus=0,
                entrypoint_num_gpus=0,
            )

    def _refuse_other(self, info: JobDetails, job: Job) -> None:
        if (info.metadata or {}).get(_CONTENT) != job.content():
            raise ConfigError(
                f"{job.stage} of this run is at work as {info.submission_id}, with other settings or another version "
                f"of the program; wait for it, or stop it first: {self.stop_command(info.submission_id)}"
            )

    def stop_command(self, name: str) -> str:
        """What stops a job."""
        return f"ray job stop --address {self._address} {name}"

    def follow_command(self, name: str) -> str:
        """What follows a job."""
        return f"ray job logs --follow --address {self._address} {name}"

    def follow(self, name: str) -> int:
        """Print a job's log as it comes, to the end; the exit code of its command.

        A stopped job has 143. Ctrl-C leaves the job alone, says so, and returns 130.
        """
        try:
            with _told(self._address):
                return asyncio.run(self._followed(name))
        except KeyboardInterrupt:
            say(f"\n{name} goes on without you. Follow it: {self.follow_command(name)}")
            say(f"stop it: {self.stop_command(name)}")
            return INTERRUPTED

    async def _followed(self, name: str) -> int:
        seen = 0
        while True:
            passed = 0
            try:
                # Each connection gets the log from its beginning.
                async for text in self._client.tail_job_logs(name):
                    fresh = text[max(0, seen - passed) :]
                    passed += len(text)
                    print(fresh, end="", flush=True)
                    seen = max(seen, passed)
            except (RuntimeError, aiohttp.ClientError) as error:
                say(f"{self._address}: {_first_line(error)}; connecting again")
            info = await self._info(name)
            if info.status.is_terminal():
                return _exit_code(info)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _info(self, name: str) -> JobDetails:
        for _ in range(ANSWER_TRIES - 1):
            try:
                return self._client.get_job_info(name)
            except OSError:  # of the connection
                await asyncio.sleep(ANSWER_TIMEOUT_S / ANSWER_TRIES)
        try:
            return self._client.get_job_info(name)
        except OSError as error:
            raise ConnectionError(
                f"{self._address}: nobody answers any more; {name} may go on. Follow it: {self.follow_command(name)}"
            ) from error


def submit_and_follow(address: str, job: Job, *, wait: bool) -> tuple[str, int]:
    """Submit a job, say what goes with it, and follow it if wanted; its submission id and exit code.

    Raises:
        ConfigError, ConnectionError: as `Jobs`.
    """
    jobs = Jobs(address)
    name, is_new = jobs.submit(job)
    if is_new:
        for line in job.files.lines():
            say(f"uploaded {line}")
        say(f"submitted {name}: {job.entrypoint}")
    else:
        say(f"{name} is this very job and runs already; it is not submitted again")
    if not wait:
        say(f"follow it: {jobs.follow_command(name)}")
        return name, 0
    return name, jobs.follow(name)


def _is_of(info: JobDetails, job: Job) -> bool:
    name = info.submission_id or ""
    return name.startswith(job.prefix) and name.removeprefix(job.prefix).isdigit()


def _exit_code(info: Any) -> int:
    """Of the job's command; Ray itself tells only whether it is 0."""
    if info.status == JobStatus.STOPPED:
        say(f"{info.submission_id} was stopped")
        return STOPPED
    code = info.driver_exit_code
    if code is None:  # it never began, or the head node was lost
        if info.status == JobStatus.SUCCEEDED:
            return 0
        say(f"{info.submission_id} failed: {info.message}")
        return 1
    return code if code >= 0 else 128 - code


def _check_answers(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--address {address}: the address of the cluster's dashboard is wanted, such as http://127.0.0.1:8265"
        )
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=ANSWER_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"--address {address}: {error}; it has to be the dashboard of a Ray head that runs (`ray start --head` "
            "prints it), perhaps through a tunnel: ssh -N -L 8265:127.0.0.1:8265 HEAD"
        ) from error


@contextmanager
def _only_this_address() -> Iterator[None]:
    """Ray takes these variables before the address that it is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn Ray's errors of the connection into one message."""
    try:
        yield
    except AuthenticationError as error:
        raise ConnectionError(
            f"{address}: the cluster asks for a token or refuses this one; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
            "(or RAY_AUTH_TOKEN_PATH, a file) to those of the cluster"
        ) from error
    except RuntimeError as error:
        raise ConnectionError(f"{address}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


__all__ = ["Job", "Jobs", "submit_and_follow"]

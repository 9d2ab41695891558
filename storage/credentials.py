"""When credentials that lie in files were renewed."""

import os
from pathlib import Path


def credentials_files() -> tuple[float | None, ...]:
    """When the files with credentials were written last: botocore reads them once, and a secret that Kubernetes
    mounts is renewed in its place."""
    times: list[float | None] = []
    for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        try:
            file = Path(os.environ.get(variable) or f"~/.aws/{usual}").expanduser()
            times.append(file.stat().st_mtime)
        except (OSError, RuntimeError):  # none, or no home
            times.append(None)
    return tuple(times)

#!/usr/bin/env bash
# Makes ~/mvqkd/.venv out of deploy/requirements.lock, on every node of a cluster on machines. Run again, it does
# nothing when nothing has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Into a folder of its own: the system's Python takes no packages, and may have no venv.
[ -x .uv/bin/uv ] || python3 -m pip install --quiet --disable-pip-version-check --target .uv uv==0.13.9
# uv's Python and not that of the system, which may lack the headers that Triton compiles with.
[ -d .venv ] || .uv/bin/uv venv --quiet --managed-python --python 3.12 .venv
.uv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r deploy/requirements.lock
.uv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
# `ray exec` and `ray attach` come in by a login shell.
grep -qsF mvqkd/deploy/node.env ~/.bashrc || echo '. ~/mvqkd/deploy/node.env' >>~/.bashrc

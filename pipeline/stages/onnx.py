"""`mvqkd onnx`: a trained student as files that sherpa-onnx runs."""

import tempfile
from pathlib import Path
from typing import Any

from mvqkd.pipeline.stages.trained import Trained


def onnx_stage(trained: Trained, out: Path) -> dict[str, Any]:
    """Write the models and `tokens.txt` into a folder; either all of them are new, or none is.

    Raises:
        StageError: there is no such student.
        OnnxExportError: it is none that sherpa-onnx runs.
        OSError: the folder cannot be written to.
    """
    from mvqkd.models.students.onnx import export_onnx

    student, units = trained.load()
    out = out.expanduser()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".onnx-") as folder:
        written = export_onnx(student, units, Path(folder))
        files = {path.stem: path.replace(out / path.name) for path in written}
    return {
        "out": str(out),
        "units": len(units),
        **{name: str(path) for name, path in files.items()},
        "bytes": sum(path.stat().st_size for path in files.values()),
    }

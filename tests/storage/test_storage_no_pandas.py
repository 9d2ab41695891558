"""A worker's process does without pandas, and so do tables in it."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CODE = """
import sys
import pyarrow as pa
from mvqkd.storage.no_pandas import leave_pandas_out
{before}
leave_pandas_out()
assert pa.table({{"a": pa.array(["x", "y"]), "b": [1, 2]}}).num_rows == 2
print("pandas" in sys.modules)
import pandas
print(pandas.Series([1]).sum())
"""


def loaded(before: str = "") -> list[str]:
    words = [sys.executable, "-c", CODE.format(before=before)]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_lists_become_arrays_without_it() -> None:
    assert loaded() == ["False", "1"], "and who asks for pandas gets it"
    assert loaded("pa.array(['x'])") == ["True", "1"], "as pyarrow does by itself"

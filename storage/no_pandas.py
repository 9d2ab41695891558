"""Arrow without pandas, for processes that nobody looks into."""

import sys

import pyarrow as pa


class _NoPandas:
    """An importer that refuses pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("left out here", name=name)


def leave_pandas_out() -> None:
    """Keep pyarrow of this process from importing pandas, which takes a second and which it only does to find out
    whether a list is one of pandas' arrays. `to_pandas` does not work here afterwards.

    Where pandas is loaded already, nothing changes.
    """
    if "pandas" in sys.modules:
        return
    refusing = _NoPandas()
    sys.meta_path.insert(0, refusing)
    try:
        pa.array([0])  # it looks once and remembers
    finally:
        sys.meta_path.remove(refusing)

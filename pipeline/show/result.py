"""The result of a command on standard output: figures for people, or one line of JSON."""

import json
import math
from typing import Any

LONGEST_LIST = 8
LONGEST_MAPPING = 24


def json_line(result: dict[str, Any]) -> str:
    """The result as JSON, with null for NaN and infinity, which are no numbers there and which other readers refuse."""
    return json.dumps(_finite(result), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_figures(result: dict[str, Any], prefix: str = "") -> None:
    """One line for each figure, `section.key: value`; long lists and mappings by their length."""
    for key, value in result.items():
        if isinstance(value, dict) and len(value) > LONGEST_MAPPING:
            print(f"{prefix}{key}: {len(value)} values, see --json")
        elif isinstance(value, dict):
            print_figures(value, f"{prefix}{key}.")
        elif isinstance(value, list) and len(value) > LONGEST_LIST:
            print(f"{prefix}{key}: {len(value)} values, see --json")
        else:
            print(f"{prefix}{key}: {value:.6g}" if isinstance(value, float) else f"{prefix}{key}: {value}")

"""Runs docs/query.md: every Python block must print what the page says it prints."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server

from mvqkd.storage.failures import Failure, write_failures
from mvqkd.storage.location import open_location
from mvqkd.storage.table import IndexTable

PAGE = Path(__file__).resolve().parents[2] / "docs" / "query.md"
_BLOCK = re.compile(
    r"```python(?P<kind> s3)?\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL
)


def blocks(kind: str | None) -> Iterator[tuple[str, str | None]]:
    for match in _BLOCK.finditer(PAGE.read_text()):
        if match["kind"] == kind:
            yield match["code"], match["output"]


def run_blocks(kind: str | None, names: dict[str, object]) -> int:
    count = 0
    for count, (code, expected) in enumerate(blocks(kind), start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{PAGE.name}, block {count}", "exec"), names)
        assert expected == printed.getvalue(), f"{PAGE.name}, block {count}:\n{code}"
    return count


def fill(url: str, contract, make_rows) -> None:
    table = IndexTable.create(open_location(url), contract)
    rows = make_rows(60)
    table.write_shard("shard-0", rows[:30])
    table.write_shard("shard-1", rows[30:])
    failure = Failure(shard="shard-1", cut_id="an9-fakls-b9", stage="load", error="UtteranceError",
                      message="no such file: an9-fakls-b9.flac", attempts=1)  # fmt: skip
    write_failures(table.location, "shard-1", [failure])


def test_the_local_blocks(tmp_path, monkeypatch, contract, make_rows, of_embeddings, embedded):
    fill(str(tmp_path / "table"), contract, make_rows)
    embeddings = IndexTable.create(open_location(str(tmp_path / "embeddings")), of_embeddings)
    embeddings.write_shard("shard-0", embedded(20))
    monkeypatch.chdir(tmp_path)
    assert run_blocks(None, {}) >= 10


@pytest.mark.integration
def test_the_s3_blocks(s3_environment: S3Server, contract, make_rows):
    fill(f"s3://{s3_environment.bucket}/table", contract, make_rows)
    assert run_blocks(" s3", {"BUCKET": s3_environment.bucket}) == 1

"""Plan, fit and extract through real Ray actors and a real S3 server give what one process gives on a local disk."""

from pathlib import Path

import pytest
from s3_server import S3Server
from tiny import Done, make_run, objects, on_s3

from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import plan_stage

pytestmark = pytest.mark.integration


def test_on_ray_and_s3_as_in_one_process_on_disk(
    ray_session: None, done: Done, tmp_path: Path, s3_environment: S3Server
) -> None:
    run = make_run(on_s3(done[0], s3_environment, tmp_path.name), tmp_path, "extract.actors=1")
    plan_stage(run)
    fit_stage(run)
    extract_stage(run)
    here = make_run(done[0], tmp_path)
    assert objects(run.table) == objects(here.table)
    assert len(objects(run.table)) > 3
    reports = [r.reports.whole() for r in (run, here)]
    figures = [{**report["extract"]["table"], "url": ""} for report in reports]
    assert figures[0] == figures[1]

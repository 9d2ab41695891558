"""The job through real Ray actors, Ray Train and a real S3 server gives what one process gives on a local disk."""

from pathlib import Path

import pytest
from s3_server import S3Server
from tiny import Done, make_run, objects

from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import plan_stage

pytestmark = pytest.mark.integration


def test_on_ray_and_s3_as_in_one_process_on_disk(
    ray_session: None, done: Done, tmp_path: Path, s3_environment: S3Server
) -> None:
    endpoint = {"endpoint_url": s3_environment.endpoint_url, "region": "us-east-1"}
    root = f"s3://{s3_environment.bucket}/{tmp_path.name}"
    cluster = {"address": "local", "num_cpus": 2}
    run = make_run({**done[0], "cluster": cluster, "storage": {"root": root, **endpoint}}, tmp_path)
    plan_stage(run)
    fit_stage(run)
    extract_stage(run)
    here = make_run(done[0], tmp_path)
    assert objects(run.table) == objects(here.table)
    assert len(objects(run.table)) > 3
    distill_stage(run)
    weights = [r.student("mvqkd").read_bytes("student.safetensors") for r in (run, here)]
    assert weights[0] == weights[1]
    ours, theirs = ({**decode_stage(r), "errors": ""} for r in (run, here))
    assert ours == theirs
    reports = [r.reports.whole() for r in (run, here)]
    figures = [{**report["extract"]["table"], "url": ""} for report in reports]
    assert figures[0] == figures[1]

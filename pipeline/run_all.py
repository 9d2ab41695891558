"""The whole job: all stages, one after the other."""

from typing import Any

from mvqkd.pipeline.cluster.pool import open_pool
from mvqkd.pipeline.run_folder import REPORT, Run
from mvqkd.pipeline.show.progress import say
from mvqkd.pipeline.stages.decode import decode_stage
from mvqkd.pipeline.stages.distill import distill_stage
from mvqkd.pipeline.stages.extract import extract_stage
from mvqkd.pipeline.stages.fit import fit_stage
from mvqkd.pipeline.stages.plan import plan_stage


def run_all(run: Run) -> dict[str, Any]:
    """Plan, fit, extract, distill and decode every student of the run; returns the run's report."""
    plan_stage(run)
    with open_pool(run.config.cluster):  # one cluster for all stages
        fit_stage(run)
        extract_stage(run)
        for name in run.config.student_names():
            distill_stage(run, name)
            if run.config.corpus.test is not None:
                decode_stage(run, name)
    from mvqkd.pipeline.show.plots import draw_plots

    draw_plots(run)
    say(f"report and plots: {run.root.full_url(REPORT)}, {run.root.full_url('curves.png')}")
    return run.reports.whole()

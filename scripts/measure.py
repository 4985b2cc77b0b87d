"""Measure the stale cells of one subject in one run."""

from pathlib import Path

from vlmeter.measure.supervision import supervise
from vlmeter.records.states import seal_records
from vlmeter.study.plan import build_plan
from vlmeter.workflow.console import job, session_progress
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]) as tell:
    study, layout = given_to_job(snakemake.config)
    subject, run = snakemake.params.subject, snakemake.params.run
    title = f"{subject}, run {run}" if run else subject
    with session_progress(title) as progress:
        log_file = Path(snakemake.log[0])
        summary = supervise(study, subject, layout, tell=tell, progress=progress, log_file=log_file, run=run)
    seal_records(layout, subject, build_plan(study, subject=subject), run=run)
    for mark in snakemake.output.get("stale", []):
        Path(mark).touch()
    tell(f"{title}: {summary.sentence()}")
    if spent := summary.spent():
        tell(f"{title}: {spent}")

"""Measure the stale cells of one subject."""

from pathlib import Path

from vlmeter.measure.supervision import supervise
from vlmeter.records.states import seal_records
from vlmeter.study.plan import build_plan
from vlmeter.workflow.console import job, session_progress
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]) as tell:
    study, layout = given_to_job(snakemake.config)
    subject = snakemake.params.subject
    with session_progress(subject) as progress:
        summary = supervise(study, subject, layout, tell=tell, progress=progress, log_file=Path(snakemake.log[0]))
    seal_records(layout, subject, build_plan(study, subject=subject))
    for mark in snakemake.output.get("stale", []):
        Path(mark).touch()
    tell(f"{subject}: {summary.sentence()}")
    if spent := summary.spent():
        tell(f"{subject}: {spent}")

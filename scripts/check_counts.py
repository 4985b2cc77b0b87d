"""Check the plan's counts against a subject's own processor."""

from pathlib import Path

from vlmeter.measure.check_counts import write_counts
from vlmeter.measure.subject import check_subject_counts
from vlmeter.workflow.console import job
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]) as tell:
    study, layout = given_to_job(snakemake.config)
    subject = snakemake.wildcards.subject
    counts = check_subject_counts(study, subject, layout)
    if counts.unsupported:
        tell(f"{subject} cannot be measured here: {counts.unsupported}")
    write_counts(Path(snakemake.output.counts), counts)
    for mark in snakemake.output.get("stale", []):
        Path(mark).touch()

"""Count FLOPs and bytes of a subject's cells."""

from pathlib import Path

from vlmeter.measure.subject import count_subject_work
from vlmeter.records.work import write_work
from vlmeter.workflow.console import job
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]):
    study, layout = given_to_job(snakemake.config)
    work = count_subject_work(study, snakemake.wildcards.subject, layout)
    write_work(Path(snakemake.output.work), work)
    for mark in snakemake.output.get("stale", []):
        Path(mark).touch()

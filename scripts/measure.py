"""Measure the stale cells of one subject."""

from pathlib import Path

from vlmeter.config import parse_study
from vlmeter.console import job, session_progress
from vlmeter.layout import Layout
from vlmeter.supervise import supervise

with job(snakemake.log[0]) as tell:
    study = parse_study(snakemake.config, source="the study")
    subject = snakemake.params.subject
    with session_progress(subject) as progress:
        summary = supervise(
            study, subject, Layout(study.study), tell=tell, progress=progress, log_file=Path(snakemake.log[0])
        )
    for mark in snakemake.output.get("stale", []):
        Path(mark).touch()
    tell(f"{subject}: {summary.sentence()}")

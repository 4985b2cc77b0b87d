"""Check the plan's counts against a subject's own processor."""

from pathlib import Path

from vlmeter.measure.check_counts import write_counts
from vlmeter.measure.subject import check_subject_counts
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study
from vlmeter.workflow.console import job

with job(snakemake.log[0]) as tell:
    study = parse_study(snakemake.config, source="the study")
    subject = snakemake.wildcards.subject
    counts = check_subject_counts(study, subject, Layout(study.study))
    if counts.unsupported:
        tell(f"{subject} cannot be measured here: {counts.unsupported}")
    write_counts(Path(snakemake.output.counts), counts)

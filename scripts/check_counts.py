"""Check the plan's counts against a subject's own processor."""

from pathlib import Path

from vlmeter.config import parse_study
from vlmeter.console import job
from vlmeter.counts import write_counts
from vlmeter.layout import Layout
from vlmeter.work import check_subject_counts

with job(snakemake.log[0]) as tell:
    study = parse_study(snakemake.config, source="the study")
    subject = snakemake.wildcards.subject
    counts = check_subject_counts(study, subject, Layout(study.study))
    if counts.unsupported:
        tell(f"{subject} cannot be measured here: {counts.unsupported}")
    write_counts(Path(snakemake.output.counts), counts)

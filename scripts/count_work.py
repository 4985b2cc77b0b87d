"""Count FLOPs and bytes of a subject's cells."""

from pathlib import Path

from vlmeter.measure.subject import count_subject_work
from vlmeter.records.work import write_work
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    study = parse_study(snakemake.config, source="the study")
    work = count_subject_work(study, snakemake.wildcards.subject, Layout(study.study))
    write_work(Path(snakemake.output.work), work)

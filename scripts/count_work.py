"""Count FLOPs and bytes of a subject's cells."""

from pathlib import Path

from vlmeter.config import parse_study
from vlmeter.console import job
from vlmeter.layout import Layout
from vlmeter.physics import write_work
from vlmeter.work import count_subject_work

with job(snakemake.log[0]):
    study = parse_study(snakemake.config, source="the study")
    work = count_subject_work(study, snakemake.wildcards.subject, Layout(study.study))
    write_work(Path(snakemake.output.work), work)

"""Measure what a subject's device can do at most."""

from pathlib import Path

from vlmeter.ceilings import measure_device
from vlmeter.config import parse_study
from vlmeter.console import job

with job(snakemake.log[0]) as tell:
    study = parse_study(snakemake.config, source="the study")
    measure_device(study.subjects[snakemake.wildcards.subject], Path(snakemake.output.ceilings), tell=tell)

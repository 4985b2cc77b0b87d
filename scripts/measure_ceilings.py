"""Measure what the device of some subjects can do at most."""

from pathlib import Path

from vlmeter.measure.ceilings import measure_device
from vlmeter.records.ceilings import write_ceilings
from vlmeter.workflow.console import job
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]) as tell:
    study, _ = given_to_job(snakemake.config)
    own, *others = map(Path, snakemake.output.ceilings)
    found = measure_device(study.subjects[snakemake.params.subject], own, tell=tell)
    for path in others:
        write_ceilings(path, found)

"""Gather all records into one tidy table, and the environments in which they were made."""

import json
from pathlib import Path

from vlmeter.common.files import write_atomically
from vlmeter.records.record import gather_environments
from vlmeter.study.plan import build_plan
from vlmeter.table.build import build_table
from vlmeter.table.files import write_table
from vlmeter.workflow.console import job
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]):
    study, layout = given_to_job(snakemake.config)
    records = [layout.record(cell, run=run) for run in range(study.runs) for cell in build_plan(study)]
    write_table(build_table(records), Path(snakemake.output.table), Path(snakemake.output.csv))
    environments = json.dumps(gather_environments(records), indent=1)
    write_atomically(Path(snakemake.output.environments), f"{environments}\n".encode())

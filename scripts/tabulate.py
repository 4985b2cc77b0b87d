"""Gather all records into one tidy table, and the environments in which they were made."""

import json
from pathlib import Path

from vlmeter.console import job
from vlmeter.files import write_atomically
from vlmeter.record import gather_environments
from vlmeter.table import build_table, write_table

with job(snakemake.log[0]):
    records = [Path(record) for record in snakemake.input.records]
    write_table(build_table(records), Path(snakemake.output.table), Path(snakemake.output.csv))
    environments = json.dumps(gather_environments(records), indent=1)
    write_atomically(Path(snakemake.output.environments), f"{environments}\n".encode())

"""Judge the statements of the analysis, for every subject."""

from pathlib import Path

from vlmeter.claims import judge_all, write_claims
from vlmeter.console import job
from vlmeter.physics import read_physics
from vlmeter.table import read_table

with job(snakemake.log[0]):
    table = read_table(Path(snakemake.input.table))
    physics = read_physics(Path(snakemake.input.physics[0])) if snakemake.input.physics else None
    judged = {name: judge_all(table, name, physics=physics) for name in snakemake.params.subjects}
    write_claims(Path(snakemake.output.claims), judged)

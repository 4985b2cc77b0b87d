"""Judge the statements of the analysis, for every subject and across them."""

from pathlib import Path

from vlmeter.claims import judge_all, write_claims
from vlmeter.claims_across import judge_across
from vlmeter.console import job
from vlmeter.layout import ACROSS
from vlmeter.physics import read_physics
from vlmeter.table import read_table

with job(snakemake.log[0]):
    table = read_table(Path(snakemake.input.table))
    physics = read_physics(Path(snakemake.input.physics[0])) if snakemake.input.physics else None
    judged = {name: judge_all(table, name, physics=physics) for name in snakemake.params.subjects}
    if across := judge_across(table):
        judged[ACROSS] = across
    write_claims(Path(snakemake.output.claims), judged)

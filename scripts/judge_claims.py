"""Judge the statements of the analysis, for every subject and across them."""

from pathlib import Path

from vlmeter.analysis.roofline import read_physics
from vlmeter.claims.files import write_claims
from vlmeter.claims.registry import judge_all
from vlmeter.claims.subjects import judge_across
from vlmeter.study.layout import ACROSS
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    table = read_table(Path(snakemake.input.table))
    physics = read_physics(Path(snakemake.input.physics[0])) if snakemake.input.physics else None
    judged = {name: judge_all(table, name, physics=physics) for name in snakemake.params.subjects}
    if across := judge_across(table):
        judged[ACROSS] = across
    write_claims(Path(snakemake.output.claims), judged)

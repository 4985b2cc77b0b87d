"""Set measured times beside work and floors."""

from pathlib import Path

from vlmeter.analysis.roofline import roofline_table, write_roofline
from vlmeter.records.ceilings import read_ceilings
from vlmeter.records.work import read_work
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    subjects = snakemake.params.subjects
    works = {name: read_work(Path(path)) for name, path in zip(subjects, snakemake.input.work, strict=True)}
    ceilings = {name: read_ceilings(Path(path)) for name, path in zip(subjects, snakemake.input.ceilings, strict=True)}
    table = read_table(Path(snakemake.input.table))
    roofline = roofline_table(table[table["subject"].isin(subjects)], works, ceilings)
    write_roofline(roofline, Path(snakemake.output.roofline))

"""Set measured times beside work and floors."""

from pathlib import Path

from vlmeter.ceilings import read_ceilings
from vlmeter.console import job
from vlmeter.physics import physics_table, read_work, write_physics
from vlmeter.table import read_table

with job(snakemake.log[0]):
    subjects = snakemake.params.subjects
    works = {name: read_work(Path(path)) for name, path in zip(subjects, snakemake.input.work, strict=True)}
    ceilings = {name: read_ceilings(Path(path)) for name, path in zip(subjects, snakemake.input.ceilings, strict=True)}
    table = read_table(Path(snakemake.input.table))
    physics = physics_table(table[table["subject"].isin(subjects)], works, ceilings)
    write_physics(physics, Path(snakemake.output.physics))

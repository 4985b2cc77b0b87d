"""Draw one figure of one subject, and write what to see in it."""

from pathlib import Path

from vlmeter.analysis.reading import of_subject
from vlmeter.analysis.roofline import beside, read_physics
from vlmeter.common.files import write_atomically
from vlmeter.figures.registry import WITH_PHYSICS, draw_or_explain
from vlmeter.figures.style import save
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    table, name = read_table(Path(snakemake.input.table)), snakemake.wildcards.figure
    if name in WITH_PHYSICS and snakemake.input.physics:
        table = beside(table, read_physics(Path(snakemake.input.physics[0])))
    figure, caption = draw_or_explain(of_subject(table, snakemake.wildcards.subject), name)
    save(figure, Path(snakemake.output.svg).with_suffix(""))
    write_atomically(Path(snakemake.output.caption), f"{caption}\n".encode())

"""Draw one figure that sets the subjects side by side, and write what to see in it."""

from pathlib import Path

from vlmeter.common.files import write_atomically
from vlmeter.figures.registry import draw_or_explain
from vlmeter.figures.style import save
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    table = read_table(Path(snakemake.input.table))
    figure, caption = draw_or_explain(table, snakemake.wildcards.side_by_side)
    save(figure, Path(snakemake.output.svg).with_suffix(""))
    write_atomically(Path(snakemake.output.caption), f"{caption}\n".encode())

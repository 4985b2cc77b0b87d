"""Draw one figure that sets the subjects side by side, and write what to see in it."""

from pathlib import Path

from vlmeter.analysis.answer_files import read_answers
from vlmeter.analysis.roofline import beside, read_roofline
from vlmeter.common.files import write_atomically
from vlmeter.figures.registry import WITH_ROOFLINE, draw_or_explain
from vlmeter.figures.style import save
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    table, name = read_table(Path(snakemake.input.table)), snakemake.wildcards.side_by_side
    if name in WITH_ROOFLINE and snakemake.input.roofline:
        table = beside(table, read_roofline(Path(snakemake.input.roofline[0])))
    answers = read_answers(Path(snakemake.input.answers[0])) if snakemake.input.answers else None
    figure, caption = draw_or_explain(table, name, answers=answers)
    save(figure, Path(snakemake.output.svg).with_suffix(""))
    write_atomically(Path(snakemake.output.caption), f"{caption}\n".encode())

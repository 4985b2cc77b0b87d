"""Compute the answers of a study, which whoever shows one takes from this file."""

from pathlib import Path

from vlmeter.analysis.answer_files import write_answers
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.roofline import read_roofline
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    table = read_table(Path(snakemake.input.table))
    roofline = read_roofline(Path(snakemake.input.roofline[0])) if snakemake.input.roofline else None
    found = {name: answers_of(table, name, roofline=roofline) for name in snakemake.params.subjects}
    write_answers(Path(snakemake.output.answers), found)

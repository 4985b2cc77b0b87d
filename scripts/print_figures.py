"""Draw all figures of one subject, or those that set all subjects side by side, for slides and papers."""

from pathlib import Path

from vlmeter.analysis.answer_files import read_answers
from vlmeter.analysis.roofline import read_roofline
from vlmeter.figures.files import subject_tables, write_figures
from vlmeter.figures.registry import IN_PRINT
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    roofline = read_roofline(Path(snakemake.input.roofline[0])) if snakemake.input.roofline else None
    subject = snakemake.params.subject
    answers = read_answers(Path(snakemake.input.answers))
    write_figures(
        dict.fromkeys(snakemake.params.figures, Path(snakemake.output.prints)),
        subject_tables(read_table(Path(snakemake.input.table)), roofline, subject),
        answers=answers if subject is None else answers[subject],
        forms=IN_PRINT,
    )
    for mark in snakemake.output.get("again", []):
        Path(mark).touch()

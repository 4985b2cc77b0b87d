"""Draw all figures of one subject, or those that set all subjects side by side, and write what to see in each."""

from pathlib import Path

from vlmeter.analysis.answer_files import read_answers
from vlmeter.analysis.roofline import read_roofline
from vlmeter.figures.files import not_drawn, remove_leftovers, subject_tables, write_captions, write_figures
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]) as tell:
    roofline = read_roofline(Path(snakemake.input.roofline[0])) if snakemake.input.roofline else None
    subject = snakemake.params.subject
    answers = read_answers(Path(snakemake.input.answers))
    folders = dict(zip(snakemake.params.figures, map(Path, snakemake.output.figures), strict=True))
    captions = write_figures(
        folders,
        subject_tables(read_table(Path(snakemake.input.table)), roofline, subject),
        answers=answers if subject is None else answers[subject],
        forms=["svg"],
    )
    write_captions(captions, folders, start="" if subject is None else f"Subject {subject}. ")
    remove_leftovers(Path(snakemake.output.figures[0]).parent, folders)
    for mark in snakemake.output.get("again", []):
        Path(mark).touch()
    if said := not_drawn(captions):
        tell(f"{subject or 'side by side'}: {said}")

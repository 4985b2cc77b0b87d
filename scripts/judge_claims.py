"""Judge the statements of the analysis, for every subject and of all of them side by side."""

from pathlib import Path

from vlmeter.analysis.answer_files import read_answers
from vlmeter.analysis.roofline import read_roofline
from vlmeter.claims.files import write_claims
from vlmeter.claims.registry import judge_all
from vlmeter.claims.subjects import judge_side_by_side
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.files import read_table
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    table = read_table(Path(snakemake.input.table))
    roofline = read_roofline(Path(snakemake.input.roofline[0])) if snakemake.input.roofline else None
    answers = read_answers(Path(snakemake.input.answers))
    judged = {
        name: judge_all(table, name, roofline=roofline, answers=answers[name]) for name in snakemake.params.subjects
    }
    if side_by_side := judge_side_by_side(table, roofline=roofline, answers=answers):
        judged[ALL_SUBJECTS] = side_by_side
    write_claims(Path(snakemake.output.claims), judged)

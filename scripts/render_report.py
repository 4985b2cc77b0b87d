"""Write the report: one page, one file."""

import hashlib
from pathlib import Path

from vlmeter.report.page import ReportInputs, Reproduction, write
from vlmeter.report.pictures import FigureFiles
from vlmeter.workflow.console import job
from vlmeter.workflow.given import given_to_job


def optional(name: str) -> Path | None:
    """An input that a rule may leave out, or give as an empty list."""
    given = snakemake.input.get(name, [])
    return next((Path(path) for path in ([given] if isinstance(given, str) else given)), None)


with job(snakemake.log[0]):
    study, layout = given_to_job(snakemake.config)
    lock = optional("lock")
    inputs = ReportInputs(
        study=study.model_dump(mode="json", exclude_none=True),
        table=Path(snakemake.input.table),
        answers=Path(snakemake.input.answers),
        claims=Path(snakemake.input.claims),
        figures={
            subject: {
                name: FigureFiles(layout.figure(subject, name, "svg"), layout.figure(subject, name, "txt"))
                for name in names
            }
            for subject, names in snakemake.params.figures.items()
        },
        reproduction=Reproduction(
            command=snakemake.params.get("command", "snakemake --profile profiles/default"),
            lock=lock.name if lock else "",
            lock_sha256=hashlib.sha256(lock.read_bytes()).hexdigest() if lock else "",
        ),
        environments=optional("environments"),
        roofline=optional("roofline"),
        thumbnails=optional("thumbnails"),
    )
    write(inputs, Path(snakemake.output.report))

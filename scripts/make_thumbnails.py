"""Make small pictures of the photographs behind the slowest requests."""

from pathlib import Path

from vlmeter.table.files import read_table
from vlmeter.workflow.console import job
from vlmeter.workflow.thumbnails import make_thumbnails, write_thumbnails

with job(snakemake.log[0]):
    found = make_thumbnails(read_table(Path(snakemake.input.table)), Path(snakemake.input.dataset) / "manifest.json")
    write_thumbnails(Path(snakemake.output.thumbnails), found)

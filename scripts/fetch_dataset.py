"""Choose the photographs and keep them as files with a manifest."""

from pathlib import Path

from vlmeter.config import parse_study
from vlmeter.console import job
from vlmeter.work import fetch_dataset

with job(snakemake.log[0]) as tell:
    study = parse_study(snakemake.config, source="the study")
    manifest = fetch_dataset(
        study,
        Path(snakemake.output.dataset),
        progress=lambda done, total: tell(f"photograph {done} of {total}") if done == total else None,
    )

"""Choose the photographs and keep them as files with a manifest."""

from pathlib import Path

from vlmeter.inputs.looks import fetch_dataset
from vlmeter.study.loader import parse_study
from vlmeter.workflow.console import job

with job(snakemake.log[0]) as tell:
    study = parse_study(snakemake.config, source="the study")
    manifest = fetch_dataset(
        study,
        Path(snakemake.output.dataset),
        progress=lambda done, total: tell(f"photograph {done} of {total}") if done == total else None,
    )

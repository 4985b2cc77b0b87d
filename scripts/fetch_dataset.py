"""Choose the photographs and keep them as files with a manifest."""

from pathlib import Path

from vlmeter.inputs.looks import fetch_dataset
from vlmeter.workflow.console import job
from vlmeter.workflow.given import given_to_job

with job(snakemake.log[0]) as tell:
    study, _ = given_to_job(snakemake.config)
    manifest = fetch_dataset(
        study,
        Path(snakemake.output.dataset),
        progress=lambda done, total: tell(f"photograph {done} of {total}") if done == total else None,
    )
    if passed_over := manifest.skipped_in_words():
        tell(passed_over)

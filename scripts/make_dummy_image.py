"""Write one dummy image."""

from pathlib import Path

from vlmeter.inputs.images import write_dummy_image
from vlmeter.workflow.console import job

with job(snakemake.log[0]):
    write_dummy_image(
        Path(snakemake.output.image),
        width_px=snakemake.params.width_px,
        height_px=snakemake.params.height_px,
        seed=snakemake.params.seed,
    )

"""The wheel holds the workflow, so that an installed vlmeter measures in any folder; the rest is in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: What the workflow consists of beside the library.
WORKFLOW = (
    *("Snakefile", "config.yaml", "requirements.lock"),
    *("rules", "scripts", "profiles", "envs", "report", "schemas", "studies", "containers"),
)


class BuildWithWorkflow(build_py):
    """Copies the workflow into the package, as the folder `workflow_files`; an editable install has it beside it."""

    def run(self) -> None:
        """Build the package, then lay the workflow into it."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "vlmeter" / "workflow_files"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in WORKFLOW:
            source = Path(__file__).parent / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.sif"))
            else:
                shutil.copy(source, target / name)


setup(cmdclass={"build_py": BuildWithWorkflow})

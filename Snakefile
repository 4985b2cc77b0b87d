"""The workflow: study -> inputs -> records -> table -> figures and claims -> report."""

import json
import os
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod
from snakemake.utils import min_version

from vlmeter.measure.resources import host_memory_mb, session_gpus, session_minutes, session_threads
from vlmeter.measure.ceilings import alike
from vlmeter.common.errors import UserError
from vlmeter.figures.registry import ALL_FIGURES, SIDE_BY_SIDE, figures_asked, get_figure
from vlmeter.common.code import code_digest, digest_of
from vlmeter.study.layout import ALL_SUBJECTS, Layout, session_name
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import has_counts, has_limits
from vlmeter.measure.supervision import OWNER_VARIABLE
from vlmeter.records.states import (
    cell_states,
    on_other_code,
    some_missing,
    stale_digests,
    states_in_words,
    subject_digest,
)
from vlmeter.workflow.given import check_place, command_again, study_given, told_by_main, told_to_jobs
from vlmeter.workflow.products import deleted, page_files, products_of, to_draw_again, to_print_again
from vlmeter.workflow.run import closing_words, take_run_lock
from vlmeter.inputs.looks import made_pictures, own_pictures

min_version("9.23")

# As a module of another workflow this one lies elsewhere than the Snakefile that is run.
BASE = Path(str(workflow.current_basedir))
CONTAINERS = DeploymentMethod.APPTAINER in workflow.deployment_settings.deployment_method

if not workflow.overwrite_configfiles:

    configfile: BASE / "config.yaml"


report: "report/workflow.rst"


# with --sdm apptainer; containers/vlmeter.def says how it is built
if CONTAINERS:

    container: str(BASE / "containers" / "vlmeter.sif")


# The study is read by its own loader, so that the workflow and the command line accept and refuse the same text; what
# Snakemake has read of it is only looked at where another workflow hands it over (`module vlmeter: config: ...`).
VALUES = list(workflow.config_settings.config_args or [])
DEFAULT = [] if VALUES and workflow.config_settings.replace_workflow_config else [BASE / "config.yaml"]
try:
    check_place(BASE, container=CONTAINERS)
    GIVEN = study_given(
        files=workflow.overwrite_configfiles or DEFAULT,
        values=VALUES,
        handed_over=config if workflow.modifier.skip_configfile else None,
        placed=workflow.modifier.path_modifier.replace_prefix,
    )
    STUDY = GIVEN.study
    CELLS = build_plan(STUDY)
except UserError as error:
    print(f"vlmeter: {error}", file=sys.stderr)
    sys.exit(2)

config = GIVEN.for_jobs
LAYOUT = Layout(STUDY.study)
# where the same files lie, seen from the working directory: a module may have a prefix
PLACES = GIVEN.layout
REPRODUCE = command_again(
    base=BASE,
    started_in=Path(workflow.workdir_init),
    snakefile=Path(workflow.main_snakefile),
    files=workflow.overwrite_configfiles,
    values=VALUES,
    directory=Path(workflow.workdir_init, workflow.overwrite_workdir) if workflow.overwrite_workdir else None,
)
DUMMIES = made_pictures(CELLS)
# where they lie, whatever the prefix of a module: braces would be wildcards
OWN_PICTURES = [local(str(path).replace("{", "{{").replace("}", "}}")) for path in own_pictures(CELLS)]
SUBJECTS = list(STUDY.subjects)
RUNS = range(STUDY.runs)
SESSIONS = [(run, subject) for run in RUNS for subject in SUBJECTS]
STATES = cell_states(STUDY, PLACES, CELLS)
# Limits are those of a device that this machine holds, and of a model that runs on it.
ON_DEVICES = [name for name, subject in STUDY.subjects.items() if has_limits(subject)]
COUNTED = [name for name, subject in STUDY.subjects.items() if has_counts(subject)]

# Figures that a study can have, by subject, and in the place of one by what shows all of them.
FIGURES_OF = {
    name: figures_asked({cell.kind for cell in CELLS if cell.subject == name}, has_limits=name in ON_DEVICES)
    for name in SUBJECTS
}
if len(SUBJECTS) > 1:
    FIGURES_OF[ALL_SUBJECTS] = list(SIDE_BY_SIDE)

# Here, all cores, and as many sessions at once as there are GPUs to give. On a cluster no number of cores is given, and a
# session gets as many as it can use.
CORES = workflow.global_resources["_cores"].value or 8
GPUS = workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 1

# A session ends when the process that wants it does, and does not go on as an orphan.
os.environ[OWNER_VARIABLE] = str(os.getpid())


onstart:
    # The operating system gives this lock back however the run ends; Snakemake's own would stay after a kill.
    try:
        RUN_LOCK = take_run_lock(PLACES)
    except UserError as error:
        raise WorkflowError(str(error))


onsuccess:
    shutil.rmtree(PLACES.stale_marks, ignore_errors=True)
    if PLACES.report.exists():
        print(
            f"vlmeter: {closing_words(PLACES, CELLS, runs=STUDY.runs)}; the report is {PLACES.report}",
            file=sys.stderr,
        )
        from vlmeter.cli.show import show_at_the_end  # none of the jobs needs it

        show_at_the_end(PLACES.root)


onerror:
    shutil.rmtree(PLACES.stale_marks, ignore_errors=True)
    print(
        f"vlmeter: not finished, but nothing that was measured is lost: the same command goes on from here. Each job's log "
        f"is in {PLACES.root / 'logs'}, and `vlmeter status` lists what is left to measure.",
        file=sys.stderr,
    )


wildcard_constraints:
    subject="|".join(map(re.escape, SUBJECTS)),


include: "rules/common.smk"
include: "rules/inputs.smk"
include: "rules/measure.smk"
include: "rules/limits.smk"
include: "rules/summarise.smk"
include: "rules/present.smk"


PRODUCTS = products_of(
    PLACES,
    figures=FIGURES_OF,
    on_devices=ON_DEVICES,
    thumbnails=STUDY.experiments.adds_thumbnails,
)


rule all:
    default_target: True
    input:
        # cells that are missing, some of each subject: one is enough to start the session that measures them all
        records=[LAYOUT.record(cell, run=run) for cell, run in some_missing(STATES)],
        stale=[*STALE_MARKS.values(), *OTHER_CODE_MARKS],
        prints=[LAYOUT.prints(place) for place in FIGURES_OF],
        again=[*DRAW_AGAIN.values(), *PRINT_AGAIN.values()],
        # the report alone would not bring back what was deleted beside it
        deleted=[LAYOUT.root / path.relative_to(PLACES.root) for path in deleted(PRODUCTS)],
        report=LAYOUT.report,
    localrule: True

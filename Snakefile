"""The workflow: study -> inputs -> records -> table -> figures and claims -> report."""

import json
import os
import shutil
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

from vlmeter.measure.resources import host_memory_mb, session_gpus, session_minutes, session_threads
from vlmeter.measure.ceilings import alike
from vlmeter.study.loader import parse_study
from vlmeter.common.errors import UserError
from vlmeter.figures.registry import ACROSS as FIGURES_ACROSS
from vlmeter.figures.registry import FIGURES, WITH_PHYSICS, get_figure
from vlmeter.common.code import code_digest
from vlmeter.study.layout import ACROSS, Layout
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import has_limits
from vlmeter.measure.supervision import OWNER_VARIABLE
from vlmeter.records.states import cell_states, some_missing, stale_digests, states_in_words, subject_digest
from vlmeter.workflow.run import closing_words, take_run_lock
from vlmeter.inputs.looks import made_pictures

min_version("9.23")

BASE = Path(workflow.basedir)

if not workflow.overwrite_configfiles:

    configfile: BASE / "config.yaml"


report: "report/workflow.rst"


# with --sdm apptainer; containers/vlmeter.def says how it is built
container: str(BASE / "containers" / "vlmeter.sif")


try:
    STUDY = parse_study(config, source="the study")
    CELLS = build_plan(STUDY)
except UserError as error:
    print(f"vlmeter: {error}", file=sys.stderr)
    sys.exit(2)

LAYOUT = Layout(STUDY.study)
REPRODUCE = f"make run STUDY={Path(workflow.configfiles[0]).name}" if workflow.configfiles else "make run"
DUMMIES = made_pictures(CELLS)
SUBJECTS = list(STUDY.subjects)
STATES = cell_states(STUDY, LAYOUT, CELLS)
# Limits are those of a device that this machine holds, and of a model that runs on it.
ON_DEVICES = [name for name, subject in STUDY.subjects.items() if has_limits(subject)]

# Here, all cores, and as many sessions at once as there are GPUs to give. On a cluster no number of cores is given, and a
# session gets as many as it can use.
CORES = workflow.global_resources["_cores"].value or 8
GPUS = workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else 1

# A session ends when the process that wants it does, and does not go on as an orphan.
os.environ[OWNER_VARIABLE] = str(os.getpid())


# On a cluster only what needs a device is submitted.
localrules:
    all,
    make_dummy_image,
    fetch_dataset,
    check_counts,
    count_work,
    tabulate,
    join_physics,
    judge_claims,
    draw_figure,
    make_thumbnails,
    draw_across,
    render_report,


onstart:
    # The operating system gives this lock back however the run ends; Snakemake's own would stay after a kill.
    try:
        RUN_LOCK = take_run_lock(LAYOUT)
    except UserError as error:
        raise WorkflowError(str(error))


onsuccess:
    shutil.rmtree(LAYOUT.stale_marks, ignore_errors=True)
    if LAYOUT.report.exists():
        print(f"vlmeter: {closing_words(LAYOUT, CELLS)}; the report is {LAYOUT.report}", file=sys.stderr)


onerror:
    shutil.rmtree(LAYOUT.stale_marks, ignore_errors=True)
    print(
        f"vlmeter: not finished, but nothing that was measured is lost: the same command goes on from here. Each job's log "
        f"is in {LAYOUT.root / 'logs'}, and `vlmeter status` lists what is left to measure.",
        file=sys.stderr,
    )


wildcard_constraints:
    subject="|".join(map(re.escape, SUBJECTS)),
    figure="|".join(map(re.escape, FIGURES)),
    across="|".join(map(re.escape, FIGURES_ACROSS)),


include: "rules/inputs.smk"
include: "rules/measure.smk"
include: "rules/limits.smk"
include: "rules/summarise.smk"
include: "rules/present.smk"


rule all:
    default_target: True
    input:
        # cells that are missing, some of each subject: one is enough to start the session that measures them all
        records=[LAYOUT.record(cell) for cell in some_missing(STATES)],
        stale=list(STALE_MARKS.values()),
        report=LAYOUT.report,

# In: images, and the study. Out: the counts of the subject's own processor; one record per cell, and a seal on each subject's records.
#
# One job is one session: it loads a subject once and measures those of its cells whose record is missing or stale, so
# records are `update()` outputs. `digest` changes with anything that can make a cell stale - the cells, the protocol, the
# subject, the measuring code, the versions - and thereby starts a session; the session itself finds out which cells.
#
# Snakemake knows what its own runs were given; it sees no record that is damaged, or that somebody put there. Where one
# does not hold, a further output is asked for, which is never there, and which is removed when the run has ended. Jobs on
# other machines are told by the environment, since they find the records as they are by then.
#
# Whatever reads records depends on the seal, whose content changes with any of them: for every single file that is asked
# for, Snakemake tries every output that there is, which for ten thousand records would take minutes.

# The environment also holds a digest of the study, which a job on another machine reads once more, perhaps hours later.

if workflow.is_main_process:
    os.environ["VLMETER_RUN"] = told_to_jobs(
        os.environ.get("VLMETER_RUN"),
        GIVEN,
        {"stale": stale_digests(PLACES, STATES), "on_other_code": stale_digests(PLACES, on_other_code(STATES))},
    )


envvars:
    "VLMETER_RUN",


try:
    TOLD = told_by_main(os.environ["VLMETER_RUN"], GIVEN)
except UserError as error:
    print(f"vlmeter: {error}", file=sys.stderr)
    sys.exit(2)

STALE_MARKS = {session: LAYOUT.stale_mark(session, digest) for session, digest in TOLD["stale"].items()}

# Where the installed code that runs a subject has changed, so may what its processor counts and what its model computes.
OTHER_CODE = digest_of(json.dumps(TOLD["on_other_code"]).encode()) if TOLD["on_other_code"] else ""
COUNTS_MARK, WORK_MARK = ([LAYOUT.stale_mark(f"{{subject}}-{what}", OTHER_CODE)] for what in ("counts", "work"))
OTHER_CODE_MARKS = expand(
    [*COUNTS_MARK, *WORK_MARK],
    subject=[name for name in SUBJECTS if any(session_name(name, run) in TOLD["on_other_code"] for run in RUNS)],
)


rule check_counts:
    input:
        dummies=[LAYOUT.dummies / image for image in DUMMIES],
        dataset=[LAYOUT.dataset] if STUDY.experiments.on_photographs else [],
        own=OWN_PICTURES,
    output:
        counts=LAYOUT.counts("{subject}"),
        stale=COUNTS_MARK if OTHER_CODE else [],
    log:
        LAYOUT.log("check_counts-{subject}"),
    priority: len(SESSIONS)
    localrule: True
    conda:
        "../envs/measure.yaml"
    params:
        digest=lambda wildcards: subject_digest(STUDY, wildcards.subject, CELLS),
        code=code_digest("vlmeter.measure.check_counts", "vlmeter.measure.questions"),
    message:
        "Putting every picture through the processor of {wildcards.subject}, to check its counts"
    script:
        "../scripts/check_counts.py"


# The sessions of a study with several runs take turns, A B A B: earlier ones go first, all counts before them, and the second
# run of a subject waits until all subjects can begin their first. On a cluster they may run side by side.
for place, (run, subject_name) in enumerate(SESSIONS):
    subject_cells = [cell for cell in CELLS if cell.subject == subject_name]
    gpus = session_gpus(STUDY.subjects[subject_name], gpus=GPUS)
    session = session_name(subject_name, run)

    rule:
        name:
            f"measure_{session}"
        input:
            dummies=[LAYOUT.dummies / image for image in made_pictures(CELLS if run else subject_cells)],
            dataset=[LAYOUT.dataset] if STUDY.experiments.on_photographs else [],
            own=OWN_PICTURES,
            # A study stops here, before any time on a device, if a count is not what the plan says. Not `ancient`: where
            # counts have to be checked again, Snakemake would look at no job behind such an input, and end well.
            counts=[LAYOUT.counts(name) for name in COUNTED if run or name == subject_name],
        output:
            records=update([LAYOUT.record(cell, run=run) for cell in subject_cells]),
            seal=LAYOUT.seal(subject_name, run=run),
            stale=[STALE_MARKS[session]] if session in STALE_MARKS else [],
        log:
            LAYOUT.log(f"measure-{session}"),
        priority: len(SESSIONS) - 1 - place
        conda:
            "../envs/measure.yaml"
        threads: session_threads(gpus, cores=CORES, of_gpus=GPUS)
        resources:
            gpu=gpus,
            runtime=session_minutes(STUDY, subject_name, subject_cells),
            mem_mb=host_memory_mb(STUDY, subject_name, subject_cells),
        params:
            subject=subject_name,
            run=run,
            digest=subject_digest(STUDY, subject_name, CELLS, run=run),
        message:
            f"Measuring {subject_name}{f', run {run}' if run else ''}: {states_in_words(STATES, subject_name, run=run)}"
        script:
            "../scripts/measure.py"

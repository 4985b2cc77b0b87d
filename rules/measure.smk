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

STALE_MARKS = {subject: LAYOUT.stale_mark(subject, digest) for subject, digest in TOLD["stale"].items()}

# Where the installed code that runs a subject has changed, so may what its processor counts and what its model computes.
OTHER_CODE = digest_of(json.dumps(TOLD["on_other_code"]).encode()) if TOLD["on_other_code"] else ""
COUNTS_MARK, WORK_MARK = ([LAYOUT.stale_mark(f"{{subject}}-{what}", OTHER_CODE)] for what in ("counts", "work"))
OTHER_CODE_MARKS = expand([*COUNTS_MARK, *WORK_MARK], subject=TOLD["on_other_code"])


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


for subject_name in SUBJECTS:
    subject_cells = [cell for cell in CELLS if cell.subject == subject_name]
    gpus = session_gpus(STUDY.subjects[subject_name], gpus=GPUS)

    rule:
        name:
            f"measure_{subject_name}"
        input:
            dummies=[LAYOUT.dummies / image for image in made_pictures(subject_cells)],
            dataset=[LAYOUT.dataset] if STUDY.experiments.on_photographs else [],
            own=OWN_PICTURES,
            # A study stops here, before any time on a device, if a count is not what the plan says. Not `ancient`: where
            # counts have to be checked again, Snakemake would look at no job behind such an input, and end well.
            counts=[LAYOUT.counts(subject_name)] if subject_name in COUNTED else [],
        output:
            records=update([LAYOUT.record(cell) for cell in subject_cells]),
            seal=LAYOUT.seal(subject_name),
            stale=[STALE_MARKS[subject_name]] if subject_name in STALE_MARKS else [],
        log:
            LAYOUT.log(f"measure-{subject_name}"),
        conda:
            "../envs/measure.yaml"
        threads: session_threads(gpus, cores=CORES, of_gpus=GPUS)
        resources:
            gpu=gpus,
            runtime=session_minutes(STUDY, subject_name, subject_cells),
            mem_mb=host_memory_mb(STUDY, subject_name, subject_cells),
        params:
            subject=subject_name,
            digest=subject_digest(STUDY, subject_name, CELLS),
        message:
            f"Measuring {subject_name}: {states_in_words(STATES, subject_name)}"
        script:
            "../scripts/measure.py"

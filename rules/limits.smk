# In: the device, the model's shapes. Out: what the device can do at most, and what each cell asks of it.
#
# What a device can do is measured once for all subjects that run on it in the same way.


for device_use, sharing in alike({name: STUDY.subjects[name] for name in ON_DEVICES}).items():

    rule:
        name:
            f"measure_ceilings_{device_use}"
        output:
            ceilings=[LAYOUT.ceilings(subject) for subject in sharing],
        log:
            LAYOUT.log(f"measure_ceilings-{device_use}"),
        # before the long session, so that an interrupted study has its limits
        priority: len(SESSIONS) + 1
        conda:
            "../envs/measure.yaml"
        # it has the machine to itself, as a measuring session does
        threads: CORES
        resources:
            gpu=0 if STUDY.subjects[sharing[0]].device == "cpu" else 1,
        params:
            subject=sharing[0],
            device=STUDY.subjects[sharing[0]].device,
            dtype=STUDY.subjects[sharing[0]].dtype,
            code=code_digest("vlmeter.measure.ceilings"),
        message:
            f"Measuring what the device of {', '.join(sharing)} can do at most"
        script:
            "../scripts/measure_ceilings.py"


rule count_work:
    input:
        dummies=[LAYOUT.dummies / image for image in DUMMIES],
        dataset=[LAYOUT.dataset] if STUDY.experiments.on_photographs else [],
        own=OWN_PICTURES,
    output:
        work=LAYOUT.work("{subject}"),
        stale=WORK_MARK if OTHER_CODE else [],
    log:
        LAYOUT.log("count_work-{subject}"),
    localrule: True
    conda:
        "../envs/measure.yaml"
    params:
        digest=lambda wildcards: subject_digest(STUDY, wildcards.subject, CELLS),
        code=code_digest("vlmeter.measure.count_work"),
    message:
        "Counting FLOPs and bytes of {wildcards.subject}"
    script:
        "../scripts/count_work.py"


rule device:
    # a target of its own: what can this machine's devices do?
    input:
        [LAYOUT.ceilings(subject) for subject in ON_DEVICES],

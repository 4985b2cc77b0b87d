# In: the device, the model's shapes. Out: what the device can do at most, and what each cell asks of it.


rule measure_ceilings:
    output:
        ceilings=LAYOUT.ceilings("{subject}"),
    log:
        LAYOUT.log("measure_ceilings-{subject}"),
    # before the long session, so that an interrupted study has its limits
    priority: 10
    conda:
        "../envs/measure.yaml"
    # it has the machine to itself, as a measuring session does
    threads: CORES
    resources:
        gpu=lambda wildcards: 0 if STUDY.subjects[wildcards.subject].device == "cpu" else 1,
    params:
        device=lambda wildcards: STUDY.subjects[wildcards.subject].device,
        dtype=lambda wildcards: STUDY.subjects[wildcards.subject].dtype,
        code=module_digest("vlmeter.ceilings"),
    message:
        "Measuring what the device of {wildcards.subject} can do at most"
    script:
        "../scripts/measure_ceilings.py"


rule count_work:
    input:
        dummies=[LAYOUT.dummies / image for image in DUMMIES],
        dataset=[LAYOUT.dataset] if STUDY.experiments.on_photographs else [],
    output:
        work=LAYOUT.work("{subject}"),
    log:
        LAYOUT.log("count_work-{subject}"),
    conda:
        "../envs/measure.yaml"
    params:
        digest=lambda wildcards: subject_digest(STUDY, wildcards.subject, CELLS),
        code=module_digest("vlmeter.flops"),
    message:
        "Counting FLOPs and bytes of {wildcards.subject}"
    script:
        "../scripts/count_work.py"


rule device:
    # a target of its own: what can this machine's devices do?
    input:
        expand(rules.measure_ceilings.output.ceilings, subject=ON_DEVICES),

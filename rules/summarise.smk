# In: the records of all subjects, their work and ceilings. Out: one tidy table, the roofline beside it, the answers, and
# the statements of the analysis, judged.


rule tabulate:
    input:
        seals=[LAYOUT.seal(subject, run=run) for run in RUNS for subject in SUBJECTS],
    output:
        table=LAYOUT.table,
        csv=report(
            LAYOUT.table_csv,
            caption="../report/table.rst",
            category="Data",
            labels={"what": "table of all measured quantities"},
        ),
        environments=LAYOUT.environments,
    log:
        LAYOUT.log("tabulate"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        cells=[f"{session_name(cell.subject, run)}/{cell.cell_id}" for run in RUNS for cell in CELLS],
        code=code_digest("vlmeter.table.build"),
    message:
        f"Gathering {len(RUNS) * len(CELLS)} records into one table"
    script:
        "../scripts/tabulate.py"


rule join_roofline:
    input:
        table=rules.tabulate.output.table,
        ceilings=[LAYOUT.ceilings(subject) for subject in ON_DEVICES],
        work=expand(rules.count_work.output.work, subject=ON_DEVICES),
    output:
        roofline=LAYOUT.roofline,
    log:
        LAYOUT.log("join_roofline"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        subjects=ON_DEVICES,
        code=code_digest("vlmeter.analysis.roofline"),
    message:
        "Setting measured times beside the least time that the device needs"
    script:
        "../scripts/join_roofline.py"


rule compute_answers:
    input:
        table=rules.tabulate.output.table,
        roofline=[rules.join_roofline.output.roofline] if ON_DEVICES else [],
    output:
        answers=LAYOUT.answers,
    log:
        LAYOUT.log("compute_answers"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        subjects=SUBJECTS,
        code=code_digest("vlmeter.analysis.answer_files"),
    message:
        "Computing the answers"
    script:
        "../scripts/compute_answers.py"


rule judge_claims:
    input:
        table=rules.tabulate.output.table,
        answers=rules.compute_answers.output.answers,
        roofline=[rules.join_roofline.output.roofline] if ON_DEVICES else [],
    output:
        claims=LAYOUT.claims,
    log:
        LAYOUT.log("judge_claims"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        subjects=SUBJECTS,
        code=code_digest("vlmeter.claims.registry", "vlmeter.claims.subjects"),
    message:
        "Judging the statements of the analysis"
    script:
        "../scripts/judge_claims.py"

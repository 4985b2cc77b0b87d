# In: the table, the answers and the claims. Out: figures, small pictures of the slowest requests, and the report.


rule draw_figure:
    input:
        table=rules.tabulate.output.table,
        answers=lambda wildcards: ([rules.compute_answers.output.answers] if wildcards.figure in WITH_ANSWERS else []),
        roofline=lambda wildcards: (
            [rules.join_roofline.output.roofline]
            if wildcards.figure in WITH_ROOFLINE and wildcards.subject in ON_DEVICES
            else []
        ),
    output:
        svg=report(
            LAYOUT.figure("{subject}", "{figure}", "svg"),
            caption="../report/figure.rst",
            category="Figures",
            subcategory="{subject}",
            labels=lambda wildcards: {"figure": get_figure(wildcards.figure).TITLE},
        ),
        png=LAYOUT.figure("{subject}", "{figure}", "png"),
        pdf=LAYOUT.figure("{subject}", "{figure}", "pdf"),
        caption=LAYOUT.figure("{subject}", "{figure}", "txt"),
    log:
        LAYOUT.log("draw_figure-{subject}-{figure}"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        code=lambda wildcards: code_digest("vlmeter.figures.registry", FIGURES[wildcards.figure]),
    message:
        "Drawing {wildcards.figure} of {wildcards.subject}"
    script:
        "../scripts/draw_figure.py"


rule make_thumbnails:
    input:
        table=rules.tabulate.output.table,
        dataset=LAYOUT.dataset,
    output:
        thumbnails=LAYOUT.thumbnails,
    log:
        LAYOUT.log("make_thumbnails"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        code=code_digest("vlmeter.workflow.thumbnails"),
    message:
        "Making small pictures of the photographs behind the slowest requests"
    script:
        "../scripts/make_thumbnails.py"


rule draw_side_by_side:
    input:
        table=rules.tabulate.output.table,
        roofline=lambda wildcards: (
            [rules.join_roofline.output.roofline] if wildcards.side_by_side in WITH_ROOFLINE and ON_DEVICES else []
        ),
        answers=lambda wildcards: (
            [rules.compute_answers.output.answers] if wildcards.side_by_side in WITH_ANSWERS else []
        ),
    output:
        svg=report(
            LAYOUT.figure(ALL_SUBJECTS, "{side_by_side}", "svg"),
            caption="../report/side_by_side.rst",
            category="Figures",
            subcategory="subjects side by side",
            labels=lambda wildcards: {"figure": get_figure(wildcards.side_by_side).TITLE},
        ),
        png=LAYOUT.figure(ALL_SUBJECTS, "{side_by_side}", "png"),
        pdf=LAYOUT.figure(ALL_SUBJECTS, "{side_by_side}", "pdf"),
        caption=LAYOUT.figure(ALL_SUBJECTS, "{side_by_side}", "txt"),
    log:
        LAYOUT.log("draw_side_by_side-{side_by_side}"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        code=lambda wildcards: code_digest("vlmeter.figures.registry", SIDE_BY_SIDE[wildcards.side_by_side]),
    message:
        "Drawing {wildcards.side_by_side} of all subjects"
    script:
        "../scripts/draw_side_by_side.py"


rule render_report:
    input:
        table=rules.tabulate.output.table,
        answers=rules.compute_answers.output.answers,
        claims=rules.judge_claims.output.claims,
        figures=expand(
            LAYOUT.figure("{subject}", "{figure}", "{extension}"),
            subject=SUBJECTS,
            figure=FIGURES,
            extension=["svg", "txt"],
        ),
        side_by_side=expand(
            LAYOUT.figure(ALL_SUBJECTS, "{side_by_side}", "{extension}"),
            side_by_side=SIDE_BY_SIDE if len(SUBJECTS) > 1 else [],
            extension=["svg", "txt"],
        ),
        roofline=[rules.join_roofline.output.roofline] if ON_DEVICES else [],
        thumbnails=[rules.make_thumbnails.output.thumbnails] if STUDY.experiments.adds_thumbnails else [],
        environments=rules.tabulate.output.environments,
        page=[str(path) for path in page_files()],
        lock=str(BASE / "requirements.lock"),
    output:
        report=report(
            LAYOUT.report,
            caption="../report/report.rst",
            category="Report",
            labels={"what": "the whole report, one page"},
        ),
    log:
        LAYOUT.log("render_report"),
    localrule: True
    conda:
        "../envs/present.yaml"
    params:
        command=REPRODUCE,
        code=code_digest("vlmeter.report.page", "vlmeter.report.side_by_side"),
    message:
        "Writing the report"
    script:
        "../scripts/render_report.py"

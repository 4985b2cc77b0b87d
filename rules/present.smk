# In: the table, the answers and the claims. Out: figures, small pictures of the slowest requests, and the report.
#
# One job draws all figures of a subject, since a process takes longer to start than a figure to be drawn; each is a target
# with its caption all the same. What cannot be drawn says so in its caption, and the report leaves it out. A report waits
# for what it shows, and not for the same figures as PNG and PDF.


for place, names in FIGURES_OF.items():
    of_whom = "side_by_side" if place == ALL_SUBJECTS else f"figures_{place}"
    in_words = "all subjects side by side" if place == ALL_SUBJECTS else place
    needed = {
        "table": rules.tabulate.output.table,
        "answers": rules.compute_answers.output.answers,
        "roofline": (
            [rules.join_roofline.output.roofline]
            if place in ON_DEVICES or (ON_DEVICES and place == ALL_SUBJECTS)
            else []
        ),
    }
    drawn_from = {
        "subject": None if place == ALL_SUBJECTS else place,
        "figures": names,
        "code": code_digest("vlmeter.figures.files", *(ALL_FIGURES[name] for name in names)),
    }

    rule:
        name:
            f"draw_{of_whom}"
        input:
            **needed,
        output:
            figures=[in_report(place, name) for name in names],
            captions=[LAYOUT.figure(place, name, form) for name in names for form in ("txt", "rst")],
        log:
            LAYOUT.log(f"draw_{of_whom}"),
        priority: 10
        localrule: True
        conda:
            "../envs/present.yaml"
        params:
            **drawn_from,
        message:
            f"Drawing {len(names)} figures of {in_words}"
        script:
            "../scripts/draw_figures.py"

    rule:
        name:
            f"print_{of_whom}"
        input:
            **needed,
        output:
            prints=[LAYOUT.figure(place, name, form) for name in names for form in IN_PRINT],
        log:
            LAYOUT.log(f"print_{of_whom}"),
        priority: -10
        localrule: True
        conda:
            "../envs/present.yaml"
        params:
            **drawn_from,
        message:
            f"Drawing the figures of {in_words} as PNG and PDF"
        script:
            "../scripts/print_figures.py"


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


rule render_report:
    input:
        table=rules.tabulate.output.table,
        answers=rules.compute_answers.output.answers,
        claims=rules.judge_claims.output.claims,
        figures=[
            LAYOUT.figure(place, name, form)
            for place, names in FIGURES_OF.items()
            for name in names
            for form in ("svg", "txt")
        ],
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
        figures=FIGURES_OF,
        code=code_digest("vlmeter.report.page", "vlmeter.report.side_by_side"),
    message:
        "Writing the report"
    script:
        "../scripts/render_report.py"

# In: the table, the answers and the claims. Out: figures, small pictures of the slowest requests, and the report.
#
# One job draws all figures of a subject, since a process takes longer to start than a figure to be drawn; each is a target
# with its caption all the same. The target is a folder, since nobody knows before anything was measured what can be drawn:
# what cannot leaves there the reason, and no picture. A report waits for what it shows, and not for the same figures as PNG
# and PDF.
#
# Snakemake sees that a folder was deleted, and not that a file inside it was: then a further output is asked for, which is
# never there (see measure.smk).

DRAW_AGAIN, PRINT_AGAIN = (
    {place: LAYOUT.stale_mark(f"{what}-{place}", digest) for place, digest in found.items()}
    for what, found in (("draw", to_draw_again(PLACES, FIGURES_OF)), ("print", to_print_again(PLACES, FIGURES_OF)))
)

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
            again=[DRAW_AGAIN[place]] if place in DRAW_AGAIN else [],
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
            prints=directory(LAYOUT.prints(place)),
            again=[PRINT_AGAIN[place]] if place in PRINT_AGAIN else [],
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
        figures=[LAYOUT.figure_folder(place, name) for place, names in FIGURES_OF.items() for name in names],
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

"""The command line: look before you measure. Measuring itself is the workflow's business (`snakemake`).

Everything heavy is imported inside the commands, so that `vlmeter --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmeter import __version__
from vlmeter.errors import UserError

if TYPE_CHECKING:
    from vlmeter.families.base import ImageGeometry, ImageOptions, ImageTokens

app = typer.Typer(
    help=(
        "Measure where the latency of a vision-language model goes.\n\n"
        "A study is a YAML file (config.yaml is the quickstart). `vlmeter plan` shows what it would measure, "
        "`snakemake --profile profiles/default` measures it and writes results/<study>/report.html, and "
        "`vlmeter status` says which cells still hold."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyFile = Annotated[Path, typer.Argument(help="study file", metavar="STUDY.yaml")]
FamilyName = Annotated[str, typer.Option("--family", help="model family, such as molmo")]
Preset = Annotated[
    str | None, typer.Option("--preset", help="whose preprocessing; default: the family's first real one")
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="a checkpoint's own preprocessing instead: a local folder or a hub id")
]
Revision = Annotated[str | None, typer.Option("--revision", help="branch, tag or commit of a hub id")]
Format = Annotated[str, typer.Option("--format", help="table, csv or json")]
MaxCrops = Annotated[
    int | None, typer.Option("--max-crops", min=1, help="limit of high-resolution crops; default: the family's own")
]
Results = Annotated[Path, typer.Option("--results", help="folder that holds the studies' folders")]


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _options(max_crops: int | None, force_tiling: str | None = None) -> ImageOptions:
    from vlmeter.families.base import ImageOptions

    return ImageOptions(
        max_crops=max_crops, force_tiling=_pair(force_tiling, "--force-tiling") if force_tiling else None
    )


def _pair(text: str, what: str) -> tuple[int, int]:
    from vlmeter.pairs import parse_pair

    try:
        return parse_pair(text)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def _geometry(family: str, preset: str | None, weights: str | None, revision: str | None) -> ImageGeometry:
    """How a family, one of its presets or a checkpoint cuts up images."""
    from vlmeter.families.base import SubjectSpec
    from vlmeter.families.registry import get_family

    known = get_family(family)
    if preset is not None and preset not in known.presets and family != "generic":
        raise UserError(f"--preset: {preset!r} is not known for {family}; legal: {', '.join(known.presets)}")
    if weights is None and preset is None:
        # The toy comes first, and may have smaller crops than any real model.
        preset = next((name for name in known.presets if name != "nano"), None)
        if preset is None:
            raise UserError(
                f"--preset or --weights is missing: family {family} has no real model as preset; legal: "
                f"{', '.join(known.presets)}, or a checkpoint as --weights"
            )
    return known.geometry(
        SubjectSpec(
            preset=preset,
            weights=weights or "random",
            revision=revision,
            dtype="bfloat16",
            attention="sdpa",
            seed=0,
        )
    )


def _image_rows(images: list[ImageTokens]) -> list[dict[str, Any]]:
    return [
        {
            "width": image.width_px,
            "height": image.height_px,
            **image.layout,
            "crops": image.crops,
            "vision_tokens": image.vision_tokens,
            "special_tokens": image.special_tokens,
            "image_tokens": image.image_tokens,
        }
        for image in images
    ]


def _image_columns(layout_columns: tuple[str, ...]) -> list[str]:
    return ["width", "height", *layout_columns, "crops", "vision_tokens", "special_tokens", "image_tokens"]


@app.command()
def tokens(
    sizes: Annotated[list[str], typer.Argument(help="image sizes, such as 640x480", metavar="WIDTHxHEIGHT...")],
    family: FamilyName = "molmo",
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    form: Format = "table",
    max_crops: MaxCrops = None,
    force_tiling: Annotated[
        str | None, typer.Option("--force-tiling", help="impose this tiling, rows x columns, such as 2x7")
    ] = None,
) -> None:
    """Say how many crops and tokens images of these sizes become, under the model's own preprocessing."""
    from vlmeter.textual import rows_as

    geometry, options = _geometry(family, preset, weights, revision), _options(max_crops, force_tiling)
    images = [geometry.image_tokens(*_pair(text, "image size"), options=options) for text in sizes]
    _print(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))


@app.command()
def size(
    family: FamilyName = "molmo",
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    vision_tokens: Annotated[int | None, typer.Option("--vision-tokens", min=1, help="wanted vision tokens")] = None,
    crops: Annotated[int | None, typer.Option("--crops", min=1, help="wanted crops, the global one included")] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", help="wanted tiling, rows x columns, such as 2x4")] = None,
    nearest: Annotated[bool, typer.Option("--nearest", help="take the nearest count if no image reaches it")] = False,
    form: Format = "table",
    max_crops: MaxCrops = None,
) -> None:
    """Find image sizes that give exactly a count of vision tokens, of crops, or a tiling.

    Every way of reaching the count is listed, each with the size nearest to a square.
    """
    from vlmeter.reach import sizes_for
    from vlmeter.textual import rows_as

    if [vision_tokens, crops, tiling].count(None) != 2:
        raise UserError("give exactly one of --vision-tokens, --crops, --tiling")
    geometry, options = _geometry(family, preset, weights, revision), _options(max_crops)
    if tiling:
        images = [geometry.size_for_tiling(_pair(tiling, "--tiling"), options=options)]
    else:
        images = sizes_for(geometry, vision_tokens=vision_tokens, crops=crops, nearest=nearest, options=options)
    _print(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))


@app.command()
def reachable(
    family: FamilyName = "molmo",
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    spread: Annotated[
        int | None, typer.Option("--spread", min=1, help="only so many counts, evenly over the range")
    ] = None,
    form: Format = "table",
    max_crops: MaxCrops = None,
) -> None:
    """List every count of vision tokens that a model can be made to see, with an image size for each.

    Under the list stands what sets its upper end.
    """
    from vlmeter.reach import reachable as all_reachable
    from vlmeter.reach import spread as spread_over
    from vlmeter.textual import rows_as

    geometry, options = _geometry(family, preset, weights, revision), _options(max_crops)
    if spread is None:
        images = list(all_reachable(geometry, options=options))
    else:
        images = spread_over(geometry, spread, options=options)
    _print(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))
    if form == "table":
        counts = {image.vision_tokens for image in images}
        _print(
            f"\n{len(counts)} counts of vision tokens, {min(counts)} to {max(counts)}; "
            f"the limit: {geometry.limit(options=options)}"
        )


@app.command()
def plan(study_file: StudyFile, form: Format = "table", results: Results = Path("results")) -> None:
    """List every cell of a study with the crops and tokens that it is expected to have.

    An empty field is not known yet: photographs of a hub dataset count once they have been fetched. The requests of a
    block differ, so a block has no counts.
    """
    from vlmeter.config import load_study
    from vlmeter.layout import Layout
    from vlmeter.plan import DummyImage, RequestBlock
    from vlmeter.textual import rows_as
    from vlmeter.work import expected_plan

    study = load_study(study_file)
    rows: list[dict[str, Any]] = []
    for cell in expected_plan(study, Layout(study.study, results)):
        image = cell.image
        if isinstance(image, DummyImage):
            looks_at = f"{image.width_px}x{image.height_px} px"
        elif isinstance(image, RequestBlock):
            looks_at = f"requests {image.first} to {image.first + len(image.requests) - 1}"
        else:
            looks_at = f"photograph {image.index}"
        rows.append(
            {
                "subject": cell.subject,
                "experiment": cell.experiment,
                "cell": cell.cell_id,
                "image": looks_at,
                "crops": cell.expected.crops,
                "vision_tokens": cell.expected.vision_tokens,
                "special_tokens": cell.expected.special_tokens,
                "text_tokens": cell.expected.text_tokens,
                "prompt_tokens": cell.expected.prompt_tokens,
                "output_tokens": cell.output_tokens,
            }
        )
    _print(rows_as(rows, list(rows[0]), form=form))
    if form == "table":
        counted = Counter((row["subject"], row["experiment"]) for row in rows)
        parts = [f"{number} {experiment} of {subject}" for (subject, experiment), number in counted.items()]
        _print(f"\n{len(rows)} cells: {', '.join(parts)}")


@app.command()
def status(study_file: StudyFile, form: Format = "table", results: Results = Path("results")) -> None:
    """Say which cells are fresh, missing or stale, and why, before anything runs.

    A cell is stale when its record was made of another cell, protocol, subject, code, versions or input than it would
    be now. Whether the device is another one, only a measuring session can tell.
    """
    from vlmeter.config import load_study
    from vlmeter.layout import Layout
    from vlmeter.textual import rows_as
    from vlmeter.work import cell_states

    study = load_study(study_file)
    rows = [
        {
            "subject": cell.subject,
            "cell": cell.cell_id,
            "state": found.state,
            "reason": ", ".join(found.reasons),
            "device": found.record.environment.get("device_model") if found.record else None,
        }
        for cell, found in cell_states(study, Layout(study.study, results))
    ]
    _print(rows_as(rows, list(rows[0]), form=form))
    if form == "table":
        counted = Counter(row["state"] for row in rows)
        _print(f"\n{len(rows)} cells: " + ", ".join(f"{counted[s]} {s}" for s in ("fresh", "missing", "stale")))


@app.command()
def forget(
    study_file: StudyFile,
    patterns: Annotated[
        list[str], typer.Argument(help="cells, such as 'vision-*'; all for every one", metavar="CELL...")
    ],
    results: Results = Path("results"),
) -> None:
    """Delete the records of cells, so that the next run measures them again on purpose."""
    import fnmatch

    from vlmeter.config import load_study
    from vlmeter.plan import build_plan
    from vlmeter.store import forget as forget_records

    study = load_study(study_file)
    cells = build_plan(study)
    chosen = [
        cell
        for cell in cells
        if any(pattern == "all" or fnmatch.fnmatchcase(cell.cell_id, pattern) for pattern in patterns)
    ]
    if not chosen:
        raise UserError(f"no cell of {study_file} matches {' '.join(patterns)}; `vlmeter plan {study_file}` lists them")
    gone = forget_records(results, study.study, chosen)
    _print(f"{len(chosen)} cells chosen, {len(gone)} records deleted; the next run measures these cells again")


@app.command()
def predict(
    study: Annotated[Path, typer.Option("--study", help="folder of a study's results, such as results/quickstart")],
    image: Annotated[str, typer.Option("--image", help="size of the image, such as 1920x1080", metavar="WIDTHxHEIGHT")],
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, help="tokens to generate, the first included")
    ],
    question_tokens: Annotated[
        int, typer.Option("--question-tokens", min=1, help="text tokens of the prompt, all of them")
    ] = 32,
    subject: Annotated[str | None, typer.Option("--subject", help="which subject, where the study has several")] = None,
    max_crops: Annotated[
        int | None, typer.Option("--max-crops", min=1, help="limit of high-resolution crops; default: the study's")
    ] = None,
    form: Format = "table",
) -> None:
    """Predict time to first token and total of a request that was not measured, with 95 % intervals.

    Made of the laws that the study's cells follow (docs/predicting.md). Refuses what is far from anything measured.
    """
    from vlmeter.prediction import choose_subject, in_words, prediction_rows
    from vlmeter.prediction import predict as predict_request
    from vlmeter.table import read_table
    from vlmeter.textual import rows_as

    width_px, height_px = _pair(image, "--image")
    if not (study / "table.parquet").exists():
        raise UserError(f"--study: {study} holds no table.parquet; legal: the folder of a study that has run")
    found = predict_request(
        choose_subject(read_table(study / "table.parquet"), subject),
        width_px=width_px,
        height_px=height_px,
        output_tokens=output_tokens,
        question_tokens=question_tokens,
        max_crops=max_crops,
    )
    if form == "json":
        _print(json.dumps(found, indent=2))
        return
    rows = prediction_rows(found, form=form)
    _print(rows_as(rows, list(rows[0]), form=form, title=in_words(found) if form == "table" else ""))
    if form == "table":
        for line in (
            *found["notes"],
            *(f"held out, {name}: {part['said']}" for name, part in found["held_out"].items()),
        ):
            _print(f"- {line}")


@app.command()
def doctor(form: Format = "table", results: Results = Path("results")) -> None:
    """Say what on this machine would disturb a measurement right now, and what to do; exit 1 if none would be right."""
    from vlmeter.doctor import examine, worst
    from vlmeter.textual import rows_as

    advice = examine(results=results)
    rows = [
        {"severity": item.severity, "topic": item.topic, "finding": item.finding, "action": item.action}
        for item in advice
    ]
    if form == "table":
        for row in rows:
            _print(f"{row['severity']:8} {row['topic']}: {row['finding']}")
            if row["action"]:
                _print(f"{'':8} -> {row['action']}")
    else:
        _print(rows_as(rows, list(rows[0]), form=form))
    if worst(advice) == "problem":
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of study files (committed as schemas/study.schema.json, for editors)."""
    from vlmeter.config import study_schema

    _print(json.dumps(study_schema(), indent=2))


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(help="folder of a checkpoint in the original format")],
    cases: Annotated[list[Path], typer.Argument(help="reference cases", metavar="CASE.npz...")],
    family: FamilyName = "molmo",
    tolerance: Annotated[float, typer.Option(help="largest relative error that passes")] = 1e-4,
) -> None:
    """Compare vlmeter's own port of a model with what the original code computed; exit 1 past tolerance."""
    from vlmeter.textual import rows_as

    if family != "molmo":
        raise UserError(f"--family: {family!r} has no port of its own that could be verified; legal: molmo")
    from vlmeter.molmo1.verify import verify as verify_cases

    results = verify_cases(checkpoint, cases, tolerance=tolerance)
    rows = [
        {
            "case": result.case.name,
            "features_error": f"{result.features_error:.2e}",
            "logits_error": f"{result.logits_error:.2e}",
            "tokens_with_cache": "equal" if result.tokens_equal_with_cache else "differ",
            "tokens_without_cache": "equal" if result.tokens_equal_without_cache else "differ",
            "verdict": "pass" if result.passed else "FAIL",
        }
        for result in results
    ]
    _print(rows_as(rows, list(rows[0]), form="table"))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _runs(first: Path, more: list[Path]) -> list[Any]:
    from vlmeter.baseline import read_runs

    return [run for path in (first, *more) for run in read_runs(path)]


def _percent(text: str, what: str) -> float:
    """Read '1%' as 0.01."""
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not text.endswith("%") or not 0 < value < 1:
        raise UserError(f"{what}: {text!r} is not a percentage between 0% and 100%, such as 1%")
    return value


@app.command()
def compare(
    a: Annotated[
        Path, typer.Argument(help="what to compare with: results/<study>, table.parquet, baseline", metavar="A")
    ],
    b: Annotated[Path, typer.Argument(help="what is compared: the same", metavar="B")],
    more_a: Annotated[list[Path] | None, typer.Option("--more-a", help="a further run of A; repeatable")] = None,
    more_b: Annotated[list[Path] | None, typer.Option("--more-b", help="a further run of B; repeatable")] = None,
    subjects: Annotated[
        list[str] | None,
        typer.Option(help="compare this subject of A with that one of B; repeatable", metavar="NAME_A:NAME_B"),
    ] = None,
    margin: Annotated[str, typer.Option(help="differences below this count as none", metavar="N%")] = "1%",
    session_noise: Annotated[
        str | None,
        typer.Option(
            help="how far a whole session errs (standard deviation), if it is known; else from the sentinel",
            metavar="N%",
        ),
    ] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="compare the cells that both have")] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="exit 1 if B is slower than that: slower:N% (as a whole), any-slower:N% (in any cell); repeatable",
            metavar="LIMIT",
        ),
    ] = None,
    form: Format = "table",
    markdown: Annotated[Path | None, typer.Option(help="write it for a pull request", metavar="FILE.md")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="write every number", metavar="FILE.json")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw the cells' ratios", metavar="FILE.svg|png|pdf")] = None,
) -> None:
    """Say whether B is faster or slower than A, cell by cell, or whether it may be noise.

    docs/comparing.md says how to read it. With --fail-on the exit code is 1 if B is slower than allowed, with
    confidence.
    """
    from vlmeter import compared
    from vlmeter.compare import Limit, Side, beyond
    from vlmeter.compare import compare as compare_sides
    from vlmeter.files import write_atomically
    from vlmeter.textual import rows_as

    limits = [Limit.parse(text) for text in fail_on or []]
    pairs = []
    for text in subjects or []:
        first, colon, second = text.partition(":")
        if not (first and colon and second):
            raise UserError(f"--subjects: {text!r} is not of the form NAME_A:NAME_B")
        pairs.append((first, second))
    found = compare_sides(
        Side(str(a), _runs(a, more_a or [])),
        Side(str(b), _runs(b, more_b or [])),
        subjects=pairs,
        margin_fraction=_percent(margin, "--margin"),
        session_noise_fraction=None if session_noise is None else _percent(session_noise, "--session-noise"),
        allow_missing=allow_missing,
    )
    failures = [sentence for limit in limits for sentence in beyond(found, limit)]
    if figure is not None:
        from vlmeter.figures.forest import draw as draw_forest
        from vlmeter.figures.style import save_as

        save_as(draw_forest(found), figure)
    if markdown is not None:
        write_atomically(markdown, compared.as_markdown(found, beyond=failures).encode())
    if as_json is not None:
        write_atomically(as_json, f"{json.dumps(compared.as_data(found, beyond=failures), indent=1)}\n".encode())
    columns, rows = compared.cell_columns(found), compared.cell_rows(found)
    if form == "table":
        _print(rows_as(rows, columns, form=form) + "\n")
        _print(rows_as(compared.overall_rows(found), compared.OVERALL_COLUMNS, form=form) + "\n")
        for line in found.notes:
            _print(f"note: {line}")
        for line in (*found.warnings, *compared.lost_lines(found)):
            _print(f"warning: {line}")
        for line in (*compared.headline(found), *failures):
            _print(line)
    else:
        _print(
            rows_as(rows, columns, form=form)
            if form != "json"
            else json.dumps(compared.as_data(found, beyond=failures))
        )
    if failures:
        raise typer.Exit(1)


@app.command()
def baseline(
    results: Annotated[
        list[Path],
        typer.Argument(help="results/<study> or table.parquet; several: runs of one thing", metavar="RESULTS..."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write: .json, or .json.gz", metavar="FILE")],
) -> None:
    """Keep what a later comparison needs of results in one small file, which can be committed."""
    from vlmeter.baseline import write_baseline
    from vlmeter.units import size as size_in_words
    from vlmeter.wording import plural

    runs = _runs(results[0], results[1:])
    written = write_baseline(output, runs)
    cells = sum(len(subject.cells) for run in runs for subject in run.subjects)
    _print(f"{output}: {plural(cells, 'cell')} of {plural(len(runs), 'run')}, {size_in_words(written)}")


def _version(asked: bool) -> None:
    if asked:
        _print(f"vlmeter {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"vlmeter: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)

"""What a run was given: a study, the folder for its results, and how to ask for the same again.

A workflow hands its jobs the study that it has read itself, so that an edit of the file in the meantime, or another
reader of YAML, cannot make them see another one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmeter.common.code import digest_of
from vlmeter.common.errors import UserError
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study, read_study, source_of
from vlmeter.study.study import Study

#: What is run where no study is named; naming it says the same.
DEFAULT_STUDY = "config.yaml"

#: What a file's name may consist of to survive make and a shell in double quotes.
PLAIN_NAME = re.compile(r"[\w ./@+=,-]+")


@dataclass(frozen=True)
class Given:
    """A study, its content as it was read, and where its results lie."""

    study: Study
    content: Mapping[str, Any]
    layout: Layout

    @property
    def for_jobs(self) -> dict[str, Any]:
        """What a job is handed instead of what the workflow's own reader made of the files."""
        return {"content": self.content, "results": str(self.layout.results)}

    @property
    def digest(self) -> str:
        """Digest of the content."""
        return digest_of(json.dumps(self.content, sort_keys=True, default=str).encode())


def study_given(
    *,
    files: Sequence[Path],
    values: Sequence[str] = (),
    handed_over: Mapping[str, Any] | None = None,
    placed: Callable[[str], str] = str,
) -> Given:
    """Read and check the study of a run; raises UserError.

    files, values: see `load_study`. handed_over: the study, where another workflow gives it to this one; files and
    values are then that one's own. placed: where a file of the results is put, by its path below the working directory.
    """
    if handed_over is None:
        files = [Path(_near(path, Path.cwd())) for path in files]  # as a person would name them
        content, source = read_study(*files, values=values), source_of(files, values)
    else:
        content, source = dict(handed_over), "the study that this workflow is given as a module"
    study = parse_study(content, source=source)
    usual = Layout(study.study)
    root = Path(placed(f"{usual.root}/"))
    if root.name != study.study:
        raise UserError(f"{usual.root} is to be called {root}; legal: a prefix of it, or another name for results/")
    return Given(study, content, Layout(study.study, root.parent))


def given_to_job(config: Mapping[str, Any]) -> tuple[Study, Layout]:
    """Read what the workflow has handed to a job (see `Given.for_jobs`)."""
    study = parse_study(config["content"], source="the study")
    return study, Layout(study.study, Path(config["results"]))


def told_to_jobs(before: str | None, given: Given, facts: Mapping[str, Any]) -> str:
    """What the main process knows, for jobs on other machines: `facts`, and which study it is about, as JSON.

    before: the same of other studies, which one workflow may hold as modules.
    """
    try:
        told = json.loads(before or "{}")
    except ValueError:
        told = {}
    return json.dumps({**told, str(given.layout.root): {**facts, "study": given.digest}})


def told_by_main(told: str, given: Given) -> dict[str, Any]:
    """Read what `told_to_jobs` wrote; raises UserError if this process has read another study than the main one."""
    found: dict[str, Any] | None = json.loads(told).get(str(given.layout.root))
    if found is None or found["study"] != given.digest:
        raise UserError(
            f"study {given.study.study} was changed while it ran: a job reads another one than the run began with; "
            "start the run again"
        )
    return found


def check_place(base: Path, *, container: bool) -> None:
    """Refuse a folder in which the workflow cannot work; raises UserError.

    base: the folder of the workflow; container: whether its image is used, whose name must not hold a space.
    """
    for character in "{}":
        if character in str(base):
            raise UserError(
                f"the folder {base} has a {character} in its name, which stands for a wildcard in a workflow; "
                "legal: a folder without braces"
            )
    if container and re.search(r"\s", str(base)):
        raise UserError(
            f"the folder {base} has a space in its name, which no container image may have; legal: a folder without "
            "spaces, or a run without containers"
        )


def _near(path: Path, folder: Path) -> str:
    """Write a path as seen from a folder, or in full if that is shorter."""
    return min(os.path.relpath(path, folder), str(path), key=len)


def command_again(
    *,
    base: Path,
    started_in: Path,
    snakefile: Path,
    files: Sequence[Path] = (),
    values: Sequence[str] = (),
    directory: Path | None = None,
) -> str:
    """Say how to run the same study again, from the folder in which it was started.

    base: folder of this workflow; snakefile: the file that was run, this workflow's or one that imports it; files,
    values: of the study, as they were given; directory: where it was told to work, if not where it was started.
    """
    own = snakefile == base / "Snakefile"

    def near(path: Path) -> str:
        return _near(path, started_in)

    simple = own and started_in == base and (base / "Makefile").is_file() and not (values or directory)
    if simple and (not files or [near(file) for file in files] == [DEFAULT_STUDY]):
        return "make run"
    if simple and len(files) == 1 and PLAIN_NAME.fullmatch(near(files[0])):
        return f"make run STUDY={shlex.quote(near(files[0]))}"
    if own and not (base / "Makefile").is_file() and files and not directory:
        words = ["vlmeter", "run", near(files[0])]
        words += [word for file in files[1:] for word in ("--configfile", near(file))]
        return shlex.join([*words, *(word for value in values for word in ("--config", value))])
    words = ["snakemake"]
    if snakefile != started_in / "Snakefile":
        words += ["--snakefile", near(snakefile)]
    words += ["--profile", near(base / "profiles" / "default")] if own else ["--cores", "all"]
    if directory is not None:
        words += ["--directory", near(directory)]
    if files:
        words += ["--configfile", *map(near, files)]
    if values:
        words += ["--config", *values]
    return shlex.join(words)

"""Where everything of a study lies. Paths are made here and nowhere else, and no meaning is ever read out of one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlmeter.cells.cell import Cell

#: Stands in the place of a subject's name for what shows several; no subject's name begins with an underscore.
ALL_SUBJECTS = "_side_by_side"


def run_folder(results: Path, study: str, run: int) -> Path:
    """Folder of what one run of a study has measured; the first run's is the study's own."""
    return results / study / "runs" / str(run) if run else results / study


def cell_path(results: Path, study: str, cell: Cell, *, run: int = 0) -> Path:
    """File of a cell's record."""
    return run_folder(results, study, run) / "cells" / cell.subject / f"{cell.cell_id}.json"


def journal_folder(results: Path, study: str, subject: str, *, run: int = 0) -> Path:
    """Folder of the journal of a subject's session."""
    return run_folder(results, study, run) / ".journal" / subject


def session_name(subject: str, run: int) -> str:
    """Name of a subject's session in rules and logs: the subject's, from the second run on with the run behind it.

    No subject has a plus sign in its name.
    """
    return f"{subject}+{run}" if run else subject


def installed_folder(results: Path, study: str) -> Path:
    """Folder of the listings of installed code that the records' fingerprints name."""
    return results / study / "installed"


@dataclass(frozen=True)
class Layout:
    """Paths of one study below the folder of all results."""

    study: str
    results: Path = Path("results")

    @property
    def root(self) -> Path:
        """The study's folder."""
        return self.results / self.study

    @property
    def dataset(self) -> Path:
        """Folder of the chosen photographs; its manifest.json lists them."""
        return self.root / "inputs" / "dataset"

    @property
    def manifest(self) -> Path:
        """List of the chosen photographs."""
        return self.dataset / "manifest.json"

    @property
    def dummies(self) -> Path:
        """Folder of dummy images."""
        return self.root / "inputs" / "dummy"

    def session_lock(self, subject: str, *, run: int = 0) -> Path:
        """Lock that a subject's session holds."""
        return journal_folder(self.results, self.study, subject, run=run).with_name(f"{subject}.lock")

    @property
    def lock(self) -> Path:
        """Lock that a run of the study holds."""
        return self.root / ".lock"

    def seal(self, subject: str, *, run: int = 0) -> Path:
        """Digest of all records of a subject's run, written when its session has ended well."""
        return run_folder(self.results, self.study, run) / "cells" / f"{subject}.sha256"

    @property
    def stale_marks(self) -> Path:
        """Folder of the files that are asked for when records do not hold, though they are there."""
        return self.root / ".stale"

    def stale_mark(self, session: str, digest: str) -> Path:
        """The file that is asked for when records of a session (`session_name`) do not hold."""
        return self.stale_marks / f"{session}-{digest}"

    def record(self, cell: Cell, *, run: int = 0) -> Path:
        """A cell's record of one run."""
        return cell_path(self.results, self.study, cell, run=run)

    @property
    def installed(self) -> Path:
        """Folder of the listings of installed code that the records' fingerprints name."""
        return installed_folder(self.results, self.study)

    def counts(self, subject: str) -> Path:
        """What the subject's own processor makes of every picture."""
        return self.root / "counts" / f"{subject}.json"

    def ceilings(self, subject: str) -> Path:
        """What the device of a subject can do at most."""
        return self.root / "ceilings" / f"{subject}.json"

    def work(self, subject: str) -> Path:
        """FLOPs and bytes of a subject's cells."""
        return self.root / "work" / f"{subject}.json"

    @property
    def environments(self) -> Path:
        """Where and with what each subject was measured."""
        return self.root / "environments.json"

    @property
    def table(self) -> Path:
        """The tidy table of all records."""
        return self.root / "table.parquet"

    @property
    def table_csv(self) -> Path:
        """The table without its list columns, for spreadsheets."""
        return self.root / "table.csv"

    @property
    def roofline(self) -> Path:
        """Measured times beside work and floors."""
        return self.root / "roofline.parquet"

    def figure_folder(self, subject: str, name: str) -> Path:
        """Folder of one figure of one subject, or of all of them (ALL_SUBJECTS): the figure, and what to see in it."""
        return self.root / "figures" / subject / name

    def figure(self, subject: str, name: str, extension: str) -> Path:
        """One figure, or what to see in it; of one that cannot be drawn there is the caption (txt) alone."""
        return self.figure_folder(subject, name) / f"{name}.{extension}"

    def prints(self, subject: str) -> Path:
        """Folder of a subject's figures for slides and papers, or of those of all of them (ALL_SUBJECTS)."""
        return self.root / "prints" / subject

    def printed(self, subject: str, name: str, extension: str) -> Path:
        """One figure for slides and papers."""
        return self.prints(subject) / f"{name}.{extension}"

    @property
    def answers(self) -> Path:
        """The answers of the study, each computed once."""
        return self.root / "answers.json"

    @property
    def claims(self) -> Path:
        """The judged statements of the analysis."""
        return self.root / "claims.json"

    @property
    def thumbnails(self) -> Path:
        """Small pictures of the photographs that the report shows."""
        return self.root / "thumbnails.json"

    @property
    def report(self) -> Path:
        """The report, one file."""
        return self.root / "report.html"

    def backend_files(self, subject: str, *, run: int = 0) -> Path:
        """Folder for what a subject's backend keeps of its own in a run, such as a server's log."""
        return run_folder(self.results, self.study, run) / "backends" / subject

    def log(self, name: str) -> Path:
        """Log of one job."""
        return self.root / "logs" / f"{name}.log"

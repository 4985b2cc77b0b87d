"""Do the tests notice when a number goes wrong? Single changes to the code that makes numbers, and which are noticed.

    pip install cosmic-ray coverage                      # which the locks leave out: they are wanted here alone
    python -m benchmarks.mutants --sample 100 --seed 1   # about a hundred mutants of each area
    python -m benchmarks.mutants --only numbers          # every mutant of these modules: hours

cosmic-ray changes one operator, number, condition or decorator at a time. The tests of the area are run once as they
are, and it is kept which lines each of them runs (`.cache/mutants`); a mutant's tests are those that run its line, the
quickest first, and if none of them notices, those that run anything of its module, within seconds of the processor.
`benchmarks/mutants_run.py` runs them, in a copy of the repository. What only a slow test notices counts as survived.

A mutant that no test notices has survived: either a test is missing, or the change means nothing. Survivors that were
looked at are in `benchmarks/known_survivors.toml`, each with the reason; any other is printed as new. Left out are
mutants of what nothing runs (types of annotations) and of guards against mistakes of ours that change no number
(`strict=True`, `frozen=True`, `TYPE_CHECKING`).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vlmeter.common.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
KNOWN = ROOT / "benchmarks/known_survivors.toml"
CACHE = ROOT / ".cache/mutants"

#: What is measured of each area: the package, and the tests that are meant to notice a change in it.
AREAS: Mapping[str, tuple[str, ...]] = {
    "numbers": ("stats", "uncertainty", "clusters", "modes", "units", "wording", "config"),
    "measure": (
        *("measure", "block", "session", "monitor", "budget", "ceilings"),
        *("counts", "flops", "questions", "runs"),
    ),
    "table": ("table", "quantities", "runs", "waits", "distribution", "requests_experiment"),
    "compare": ("compare", "baseline", "runs"),
    "claims": ("claims", "claim_limits", "claim_words", "side_by_side", "software", "waits", "distribution"),
}

#: Modules of these packages that make no number and no verdict.
OTHERS: Mapping[str, str] = {
    "vlmeter/measure/devices.py": "chooses and locks a device",
    "vlmeter/measure/doctor.py": "advises before a study; nothing of it is in a record",
    "vlmeter/measure/environment.py": "names the machine and its libraries",
    "vlmeter/measure/progress.py": "shows how a session gets on",
    "vlmeter/measure/questions.py": "refuses questions",
    "vlmeter/measure/recording.py": "names pictures and questions",
    "vlmeter/measure/subject.py": "calls the parts in order",
    "vlmeter/measure/supervision.py": "starts and ends processes",
    "vlmeter/measure/worker.py": "is such a process",
}

#: Seconds of the processor that the tests of one mutant may take in all: those of its line, those of its module.
BUDGET_S, MODULE_BUDGET_S = 90.0, 30.0

#: Those of the tests that are run without any change, to see that they pass; and when a process of tests is ended.
CONTROL_BUDGET_S, CPU_S = 1.0, 180

#: What share of the mutants has to be noticed.
ENOUGH = 0.9


@dataclass(frozen=True)
class Mutant:
    """A changed module; change: the lines that it takes away and adds, on one line."""

    module: str
    operator: str
    line: int
    change: str
    source: str

    @property
    def said(self) -> tuple[str, str]:
        """By what it is known among those of its module."""
        return self.operator, self.change


@dataclass(frozen=True)
class Survivor:
    """A mutant that no test noticed; equivalent: it cannot be noticed; why is empty for one that nobody looked at."""

    module: str
    line: int
    operator: str
    change: str
    equivalent: bool
    why: str


@dataclass
class Outcome:
    """What became of the mutants of one area; left_out: those that would change nothing that runs."""

    area: str
    mutants: int = 0
    left_out: int = 0
    tried: int = 0
    killed: int = 0
    ended: int = 0
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    survivors: list[Survivor] = field(default_factory=list)

    @property
    def equivalent(self) -> int:
        """Survivors that no test can notice."""
        return sum(survivor.equivalent for survivor in self.survivors)

    def summary(self) -> dict[str, Any]:
        """Counts, shares with their 95 % intervals (Wilson), survivors."""
        return {
            **asdict(self),
            "equivalent": self.equivalent,
            "killed_fraction": wilson(self.killed, self.tried - self.equivalent),
            "killed_fraction_of_all": wilson(self.killed, self.tried),
        }


def wilson(count: int, of: int) -> tuple[float, float, float]:
    """A share and its 95 % interval."""
    from scipy.stats import binomtest

    interval = binomtest(count, of).proportion_ci(method="wilson")
    return count / of, float(interval.low), float(interval.high)


def modules_of(area: str) -> list[str]:
    """The modules of an area that make numbers or verdicts."""
    files = sorted((ROOT / "vlmeter" / area).glob("*.py"))
    names = [file.relative_to(ROOT).as_posix() for file in files if file.name != "__init__.py"]
    return [name for name in names if name not in OTHERS]


def tests_of(area: str) -> list[str]:
    """The files of tests of an area."""
    return [f"tests/test_{name}.py" for name in AREAS[area]]


# -- mutants -----------------------------------------------------------------------------------------------------------


def meaning(source: str) -> str:
    """The syntax tree of what runs and is no guard: without annotations, `strict=`, `frozen=` and `TYPE_CHECKING`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.Call):
            node.keywords = [each for each in node.keywords if each.arg not in ("strict", "frozen")]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.test = ast.Constant(None)
    return ast.dump(tree)


def mutants_of(module: str, *, share: float, seed: int) -> tuple[list[Mutant], int, int]:
    """Make mutants of a module: a share of them, how many there are, and how many of those looked at mean nothing."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = (ROOT / module).read_text(encoding="utf-8")
    places, nodes = [], list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        if get_operator(name).arguments():
            continue
        operator, count = get_operator(name)(), 0
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                places.append((start, name, count))
                count += 1
    places.sort()
    wanted = math.ceil(share * len(places))
    random.Random(f"{seed} {module}").shuffle(places)
    found: list[Mutant] = []
    same, before = 0, meaning(source)
    for (line, _), name, occurrence in places:
        if len(found) == wanted:
            break
        try:
            changed = mutate_code(source, get_operator(name)(), occurrence)
        except AttributeError:  # cosmic-ray 8.7 cannot replace an exception whose name has a dot
            changed = None
        if changed is None or meaning_or_nothing(changed) == before:
            same += 1
            continue
        found.append(Mutant(module, name.removeprefix("core/"), line, said(source, changed), changed))
    return found, len(places), same


def meaning_or_nothing(source: str) -> str:
    """What a changed source means, or nothing if it is no Python."""
    try:
        return meaning(source)
    except SyntaxError:
        return ""


def said(before: str, after: str) -> str:
    """The lines that a change takes away and adds, on one line."""
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))[2:]
    parts = [" ".join(" ".join(line[1:] for line in lines if line[0] == sign).split()) for sign in "-+"]
    return " -> ".join(parts)


# -- which tests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Test:
    """A test, what it takes of the processor, alone and with what its file shares, and the lines that it runs."""

    name: str
    took_s: float
    shared_s: float
    lines: Mapping[str, frozenset[int]]

    @property
    def file(self) -> str:
        """The file that it is in."""
        return self.name.partition("::")[0]


def tests_in(traced: Mapping[str, Any]) -> Iterator[Test]:
    """The tests of a traced file: each runs what the file's fixtures run, and of what it uses the imports too."""
    shared = {module: frozenset(lines) for module, lines in traced["shared"]["lines"].items()}
    fixtures = {module: lines & lines_of_functions(module) for module, lines in shared.items()}
    for name, test in traced["tests"].items():
        lines = {module: frozenset(own) | shared.get(module, frozenset()) for module, own in test["lines"].items()}
        lines |= {module: shared[module] for module, ran in fixtures.items() if ran and module not in lines}
        yield Test(name, test["took_s"], traced["shared"]["took_s"], lines)


@cache
def lines_of_functions(module: str) -> frozenset[int]:
    """The lines inside of functions, which no import runs."""
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return frozenset(
        line for node in functions for line in range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
    )


def statement_of(source: str, line: int) -> range:
    """The lines of the smallest statement around a line; of one with a body, its head."""
    best = range(1, len(source.splitlines()) + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt):
            first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
            body = getattr(node, "body", None)
            last = max(first, body[0].lineno - 1) if body else node.end_lineno or first
            if first <= line <= last and last - first < len(best):
                best = range(first, last + 1)
    return best


def chosen(tests: Sequence[Test], *, budget_s: float, first: str = "") -> list[str]:
    """The quickest tests that fit into a budget, file by file; first: a file that goes before the others."""
    by_file: dict[str, list[Test]] = {}
    for test in sorted(tests, key=lambda test: (test.took_s, test.name)):
        by_file.setdefault(test.file, []).append(test)
    names: list[str] = []
    order = sorted(by_file.values(), key=lambda own: (own[0].file != first, own[0].shared_s, own[0].took_s))
    for several in order:
        left = budget_s - several[0].shared_s
        for test in several:
            if (test.took_s > left and names) or test.took_s > budget_s:
                break
            left -= test.took_s
            names.append(test.name)
            budget_s = left  # for the files behind, whose tests may be quicker
    return names


def stages(mutant: Mutant, tests: Sequence[Test]) -> list[list[str]]:
    """Which tests to run: those of the mutant's line, and if none notices, those of its module."""
    lines = statement_of((ROOT / mutant.module).read_text(encoding="utf-8"), mutant.line)
    own = [test for test in tests if test.lines.get(mutant.module, frozenset()) & frozenset(lines)]
    every = [test for test in tests if test.lines.get(mutant.module)]
    package, name = Path(mutant.module).parent.name, Path(mutant.module).stem
    files = {test.file for test in tests}
    first = next((file for file in (f"tests/test_{name}.py", f"tests/test_{package}.py") if file in files), "")
    found = (chosen(own, budget_s=BUDGET_S, first=first), chosen(every, budget_s=MODULE_BUDGET_S, first=first))
    return [names for names in found if names]


# -- running -----------------------------------------------------------------------------------------------------------


def copy_of_repository(folder: Path) -> None:
    """Copy what git knows, and what is new and not ignored: tests run on the copy."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def answers(jobs: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Let jobs be done in a copy of the repository, and give what comes of them as it comes."""
    if not jobs:
        return
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.mutants_run", "jobs.json"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit("the process that runs the tests failed, see above")


def _stamp(file: str) -> str:
    """What a trace depends on: the tests, and all that they may run."""
    parts = [ROOT / file, *sorted((ROOT / "vlmeter").rglob("*.py")), *sorted((ROOT / "tests/support").rglob("*.py"))]
    return hashlib.sha256(b"\0".join(part.read_bytes() for part in parts)).hexdigest()[:16]


def traces(files: Sequence[str], folder: Path) -> dict[str, Any]:
    """What every test of these files runs; kept from one time to the next."""
    places = {file: CACHE / f"{Path(file).stem}-{_stamp(file)}.json" for file in files}
    missing = [file for file, place in places.items() if not place.is_file()]
    for traced in answers([{"trace": file} for file in missing], folder):
        print(f"{traced['file']}: {len(traced['tests'])} tests, as they are", flush=True)
        places[traced["file"]].parent.mkdir(parents=True, exist_ok=True)
        write_atomically(places[traced["file"]], json.dumps(traced).encode())
    return {file: json.loads(place.read_text(encoding="utf-8")) for file, place in places.items()}


def known_survivors(path: Path = KNOWN) -> dict[tuple[str, str, str], tuple[bool, str]]:
    """Survivors that were looked at, by module, operator and change: whether they are equivalent, and the reason."""
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("survivor", [])
    return {
        (entry["module"], entry["operator"], entry["change"]): (entry["equivalent"], entry["why"]) for entry in entries
    }


def try_area(
    area: str,
    *,
    modules: Sequence[str],
    folder: Path,
    sample: int | None,
    seed: int,
    load: float,
    again: Sequence[Mapping[str, Any]] | None = None,
) -> Outcome:
    """Try mutants of an area: about `sample` of them, from each module in proportion to what it has, or all.

    again: the survivors of the same sample before tests were added; then the others are taken as noticed, and those
    that are known as surviving.
    """
    tests = [test for traced in traces(tests_of(area), folder).values() for test in tests_in(traced)]
    outcome, known = Outcome(area), known_survivors()
    total = sum(mutants_of(module, share=0, seed=seed)[1] for module in modules)
    share = 1.0 if sample is None else min(1.0, sample / total)
    survived = None if again is None else {(each["module"], each["operator"], each["change"]) for each in again}
    jobs, mutants_by = [], {}
    for module in modules:
        mutants, there, same = mutants_of(module, share=share, seed=seed)
        mutants_by[module] = mutants
        outcome.mutants, outcome.left_out = outcome.mutants + there, outcome.left_out + same
        every = chosen([test for test in tests if test.lines.get(module)], budget_s=CONTROL_BUDGET_S)
        changes = [{"key": -1, "source": None, "stages": [every] if every else [], "cpu_s": CPU_S, "load": load}]
        changes += [
            {
                "key": key,
                "source": each.source,
                "stages": [] if survived is not None and (module, *each.said) in known else stages(each, tests),
                "cpu_s": CPU_S,
                "load": load,
            }
            for key, each in enumerate(mutants)
            if survived is None or (module, *each.said) in survived
        ]
        if len(changes) > 1:
            jobs.append({"module": module, "changes": changes})
        noticed_before = len(mutants) - (len(changes) - 1)
        outcome.tried, outcome.killed = outcome.tried + noticed_before, outcome.killed + noticed_before
        outcome.modules[module] = (noticed_before, noticed_before)
    for answer in answers(jobs, folder):
        module, code = answer["module"], answer["code"]
        if answer["change"] < 0:
            if code != 0:
                raise SystemExit(f"the tests of {module} fail without any mutant (code {code})")
            continue
        outcome.tried += 1
        outcome.killed += code != 0
        outcome.ended += code is None
        noticed, of = outcome.modules[module]
        outcome.modules[module] = (noticed + (code != 0), of + 1)
        if code == 0:
            mutant = mutants_by[module][answer["change"]]
            equivalent, why = known.get((module, mutant.operator, mutant.change), (False, ""))
            outcome.survivors.append(
                Survivor(module, mutant.line, mutant.operator, mutant.change, equivalent=equivalent, why=why)
            )
            said_so = f"{module}:{mutant.line} {mutant.operator}: {mutant.change}"
            print(f"  {'known' if why else 'NEW'}: {said_so}", flush=True)
        if of + 1 == len(mutants_by[module]):
            print(f"{module}: {outcome.modules[module][0]} of {of + 1} noticed", flush=True)
    return outcome


def write_outcome(path: Path, outcome: Outcome, *, sample: int | None, seed: int) -> None:
    """Write what became of an area into a file, beside the areas that are there."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    areas = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    areas[outcome.area] = {"commit": commit.stdout.strip(), "sample": sample, "seed": seed, **outcome.summary()}
    write_atomically(
        path, (json.dumps({area: areas[area] for area in AREAS if area in areas}, indent=1) + "\n").encode()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Try mutants and print what survived; exit code 1 if of any area fewer than nine in ten were noticed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants of each area; all without it")
    parser.add_argument("--seed", type=int, default=1, help="which they are")
    parser.add_argument("--only", nargs="+", default=[], help="modules whose path has one of these words in it")
    parser.add_argument("--load", type=float, default=math.inf, help="wait while the machine's load is above it")
    parser.add_argument("--again", type=Path, help="try the survivors of this output alone, once tests were added")
    parser.add_argument(
        "--output", type=Path, help="write the outcomes as JSON; areas not tried stay as they are there"
    )
    options = parser.parse_args(arguments)
    asked = {
        area: [each for each in modules_of(area) if not options.only or any(word in each for word in options.only)]
        for area in AREAS
    }
    if not any(asked.values()):
        legal = ", ".join(module for area in AREAS for module in modules_of(area))
        parser.error(f"--only: no module has {' or '.join(options.only)} in its path; legal: {legal}")
    again = json.loads(options.again.read_text(encoding="utf-8")) if options.again else {}
    for area in again.keys() & {area for area, modules in asked.items() if modules}:
        if (again[area]["sample"], again[area]["seed"]) != (options.sample, options.seed):
            parser.error(f"--again: {area} is of --sample {again[area]['sample']} --seed {again[area]['seed']}")
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        copy_of_repository(Path(place))
        for area, modules in asked.items():
            if not modules:
                continue
            found = try_area(
                area,
                modules=modules,
                folder=Path(place),
                sample=options.sample,
                seed=options.seed,
                load=min(options.load, 1e9),
                again=again[area]["survivors"] if area in again else None,
            )
            outcomes.append(found)
            value, low, high = (100 * part for part in wilson(found.killed, found.tried - found.equivalent))
            print(
                f"== {area}: {found.killed} of {found.tried} noticed, {found.equivalent} equivalent: "
                f"{value:.0f} % ({low:.0f} to {high:.0f})",
                flush=True,
            )
            if options.output:
                write_outcome(options.output, found, sample=options.sample, seed=options.seed)
    return 0 if all(each.killed >= ENOUGH * (each.tried - each.equivalent) for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

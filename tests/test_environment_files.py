"""The locks, the conda environments, the wheel and the Makefile hold what they promise; no network needed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools import pins

ROOT = pins.ROOT
PROJECT = pins.read_project()["project"]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRA = [Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra]
BUILD = [Requirement(text) for text in pins.read_project()["build-system"]["requires"]]

#: What the workflow consists of beside the library, as in setup.py.
WORKFLOW = (
    *("Snakefile", "config.yaml", "requirements.lock"),
    *("rules", "scripts", "profiles", "envs", "report", "schemas", "studies", "containers"),
)
PIP = [sys.executable, "-m", "pip"]
LOCKS = [pins.LOCK, pins.DEV_LOCK]
ENVIRONMENTS = sorted(path.name for path in (ROOT / "envs").glob("*.yaml"))


def satisfied(requirement: Requirement, locked: dict[str, pins.Pin]) -> bool:
    pin = locked.get(canonicalize_name(requirement.name))
    return pin is not None and requirement.specifier.contains(pin.version, prereleases=True)


# The locks


@pytest.mark.parametrize(
    ("lock", "requirement"),
    [
        pytest.param(lock, requirement, id=f"{lock}-{requirement.name}")
        for lock, requirements in ((pins.LOCK, DIRECT + BUILD), (pins.DEV_LOCK, DIRECT + BUILD + EXTRA))
        for requirement in requirements
    ],
)
def test_every_range_of_pyproject_is_pinned_within_itself(lock: str, requirement: Requirement) -> None:
    assert satisfied(requirement, pins.read_lock(ROOT / lock)), f"{requirement} is not met; run `make lock`"


def active_requirements(requirements: list[Requirement]) -> Iterator[tuple[str, Requirement]]:
    """Walk the installed metadata from `requirements` down, as (who asks, for what), on this interpreter."""
    todo = [("vlmeter", requirement) for requirement in requirements]
    seen = set()
    while todo:
        asker, requirement = todo.pop()
        yield asker, requirement
        name = canonicalize_name(requirement.name)
        extras = ("", *sorted(requirement.extras))
        if (name, extras) in seen or pins.is_cuda_library(name):
            continue
        seen.add((name, extras))
        for text in importlib.metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append((requirement.name, needed))


def unmet_requirements(roots: list[Requirement], locked: dict[str, pins.Pin]) -> list[str]:
    """List what is asked for and not in `locked`; the CUDA libraries are torch's own business."""
    other = {
        name: version
        for name, pin in locked.items()
        if not pin.marker and (version := installed_version(name)) != pin.version
    }
    if other:  # the metadata of other versions would say nothing about the versions in the lock
        message = f"the tests run in an environment that was not made from {pins.DEV_LOCK}: {other}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return [
        f"{asker} asks for {requirement}"
        for asker, requirement in active_requirements(roots)
        if not satisfied(requirement, locked) and not (asker == "torch" and pins.is_cuda_library(requirement.name))
    ]


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize(("lock", "roots"), [(pins.LOCK, DIRECT), (pins.DEV_LOCK, DIRECT + EXTRA)], ids=LOCKS)
def test_lock_holds_whatever_its_packages_ask_for(lock: str, roots: list[Requirement]) -> None:
    assert unmet_requirements(roots, pins.read_lock(ROOT / lock)) == []


def test_locks_start_at_the_oldest_python_that_the_package_takes() -> None:
    assert PROJECT["requires-python"] == f">={pins.PYTHONS[0]}"


def test_what_is_tested_is_what_is_run() -> None:
    run, dev = pins.read_lock(ROOT / pins.LOCK), pins.read_lock(ROOT / pins.DEV_LOCK)
    assert {name: pin.version for name, pin in run.items()} == {name: dev[name].version for name in run}
    # a tool of the tests may want a package on more machines than vlmeter itself does, never on fewer
    assert [name for name, pin in run.items() if dev[name].marker not in (pin.marker, "")] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_names_no_place_and_no_build(lock: str) -> None:
    lines = [
        line for line in (ROOT / lock).read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")
    ]
    assert lines
    odd = [line for line in lines if not re.fullmatch(r'[a-z0-9-]+==[a-z0-9.]+( ; [\w.\s"<>=!()]+)?', line)]
    assert not odd, "a pin is name==version, perhaps with a condition: no path, host, option, hash or local build"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_leaves_the_cuda_libraries_to_torch(lock: str) -> None:
    direct = {canonicalize_name(requirement.name) for requirement in DIRECT}
    assert [name for name in pins.read_lock(ROOT / lock) if pins.is_cuda_library(name) and name not in direct] == []


# How they are made

RESOLVED = """\
app-helper==1.0
    # via app (pyproject.toml)
colorama==0.4 ; sys_platform == 'win32'
    # via app-helper
cuda-only==1.0
    # via nvidia-maths
numpy==2.0 ; sys_platform != 'win32'
    # via
    #   -c requirements.lock
    #   app (pyproject.toml)
    #   nvidia-maths
nvidia-maths==13.0 ; sys_platform == 'linux'
    # via torch
nvidia-ml-py==13.1
    # via app (pyproject.toml)
rare==1.0 ; platform_machine == 'x86_64'
    # via torch
torch==2.13.0
    # via app (pyproject.toml)
"""


def test_only_torchs_own_cuda_libraries_are_left_out_and_what_only_they_need() -> None:
    kept = pins.without_cuda(pins.parse_lock(RESOLVED), project="app")
    assert sorted(kept) == ["app-helper", "colorama", "numpy", "nvidia-ml-py", "rare", "torch"]
    assert kept["numpy"].via == ("app",)


def test_a_condition_stays_only_where_supported_machines_differ() -> None:
    kept = pins.for_supported_machines(pins.parse_lock(RESOLVED))
    assert "colorama" not in kept
    assert kept["numpy"].marker == ""
    assert kept["rare"].marker == 'platform_machine == "x86_64"'


def test_a_written_lock_reads_back_as_it_was() -> None:
    locked = pins.read_lock(ROOT / pins.DEV_LOCK)
    assert pins.parse_lock(pins.lock_text(locked, what="anything")) == locked


def test_a_closure_holds_what_is_needed_and_nothing_else() -> None:
    locked = pins.parse_lock(RESOLVED)
    assert sorted(pins.closure(locked, ["torch"])) == ["cuda-only", "numpy", "nvidia-maths", "rare", "torch"]
    with pytest.raises(KeyError):
        pins.closure(locked, ["absent"])


# The conda environments


def test_environments_agree_with_the_lock() -> None:
    assert pins.stale_environments() == [], "run `make lock`"


@pytest.mark.parametrize("drift", ["changed", "missing", "left over"])
def test_drift_of_an_environment_is_noticed(tmp_path: Path, drift: str) -> None:
    for name in ("pyproject.toml", pins.LOCK):
        shutil.copy(ROOT / name, tmp_path)
    pins.write_environments(tmp_path)
    assert pins.stale_environments(tmp_path) == []
    path = tmp_path / "envs" / "measure.yaml"
    if drift == "changed":
        path.write_text(path.read_text(encoding="utf-8").replace("torch==2", "torch==3"), encoding="utf-8")
    elif drift == "missing":
        path.unlink()
    else:
        path = path.with_name("forgotten.yaml")
        path.touch()
    assert pins.stale_environments(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_is_one_that_conda_reads(name: str) -> None:
    content = yaml.safe_load((ROOT / "envs" / name).read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge", "nodefaults"]
    python, pip, packages = content["dependencies"]
    assert python.removeprefix("python =") in pins.PYTHONS
    assert pip == "pip"
    locked = {pin.requirement for pin in pins.read_lock(ROOT / pins.LOCK).values()}
    assert packages["pip"]
    assert set(packages["pip"]) <= locked


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_holds_whatever_its_packages_ask_for(name: str) -> None:
    wanted = pins.read_project()["tool"]["vlmeter"]["environments"][name.removesuffix(".yaml")]["packages"]
    locked = pins.closure(pins.read_lock(ROOT / pins.LOCK), wanted)
    assert unmet_requirements([Requirement(package) for package in wanted], locked) == []


def test_presenting_needs_no_torch() -> None:
    text = (ROOT / "envs" / "present.yaml").read_text(encoding="utf-8")
    assert "torch" not in text
    assert "transformers" not in text


# The package


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this repository; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("vlmeter", *WORKFLOW):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, f"--wheel-dir={folder}", str(source)], check=True, capture_output=True, text=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_carries_every_file_of_the_library_and_of_the_workflow(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = wheel.parent / "source"
    library = {path.relative_to(source).as_posix() for path in (source / "vlmeter").rglob("*") if path.is_file()}
    names = subprocess.run(["git", "ls-files", *WORKFLOW], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    workflow = {f"vlmeter/workflow_files/{name}" for name in names.splitlines()}
    assert library - packed == set()
    assert workflow - packed == set()
    assert {name for name in packed - library if not name.startswith("vlmeter/workflow_files/")} == set()


@pytest.mark.slow
def test_the_wheel_in_an_environment_with_the_dependencies_of_this_one_measures_in_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    """The environment is fresh but for a .pth file that leads to this one's packages: nothing is downloaded."""
    fresh, empty = tmp_path / "fresh", tmp_path / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(fresh)], check=True)
    (site,) = fresh.glob("lib/python*/site-packages")
    install = ["--python", str(fresh / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*PIP, *install], check=True, capture_output=True, text=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    empty.mkdir()
    study = {
        "study": "mine",
        "subjects": {"one": {"family": "molmo", "preset": "nano", "dtype": "float32", "backend": "fake"}},
        "experiments": {"requests": {"image_sizes": ["336x336"], "output_tokens": [1, 4]}},
        "sampling": {"min_samples": 5, "max_samples": 5, "min_warmup": 1, "max_warmup": 1},
    }
    (empty / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [str(fresh / "bin" / "vlmeter"), "run", "study.yaml", "--", "--cores", "1"]
    ran = subprocess.run(
        command, cwd=empty, env={**own, "VLMETER_LOCK_DIR": str(tmp_path / "locks")}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert (empty / "results" / "mine" / "report.html").exists()
    assert "vlmeter run study.yaml" in (empty / "results" / "mine" / "report.html").read_text(encoding="utf-8")
    assert ran.stdout.splitlines()[-1] == "Report  results/mine/report.html"
    assert "each further token" in ran.stdout
    record = json.loads((empty / "results/mine/cells/one/requests-size-336x336-n4.json").read_text(encoding="utf-8"))
    assert record["status"] == "ok"
    again = subprocess.run(command, cwd=empty, env=own, capture_output=True, text=True)
    assert "Nothing to be done" in again.stderr
    assert again.stdout == ran.stdout


# The Makefile


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile beside locks that need no network."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for lock in LOCKS:
        (tmp_path / lock).write_text("", encoding="utf-8")
    return tmp_path


@pytest.mark.needs("make")
def test_make_alone_lists_the_commands() -> None:
    listed = re.findall(r"^  ([a-z-]+) ", make(ROOT).stdout, flags=re.MULTILINE)
    assert listed == ["help", "run", "test", "servers", "test-servers", "docs", "lint", "format", "lock", "clean"]


@pytest.mark.needs("make")
def test_make_refuses_an_old_python_in_one_sentence(checkout: Path) -> None:
    old = checkout / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    result = make(checkout, "run", f"PYTHON={old}")
    assert result.returncode == 2
    assert f"vlmeter needs Python 3.11 or newer, which {old} is not" in result.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
@pytest.mark.needs("make")
def test_make_never_believes_an_environment_whose_installation_failed(checkout: Path) -> None:
    lock = checkout / pins.DEV_LOCK
    lock.write_text("vlmeter-no-such-package==1.0\n", encoding="utf-8")
    failed = make(checkout, "format", f"PYTHON={sys.executable}", PIP_NO_INDEX="1")
    assert failed.returncode == 2
    assert (checkout / ".venv" / "bin" / "python").exists()
    assert "Making .venv" in make(checkout, "--dry-run", "format").stdout

    lock.write_text("", encoding="utf-8")
    make(checkout, "format", f"PYTHON={sys.executable}", PIP_NO_INDEX="1")  # goes on to a ruff that is not there
    assert len(list((checkout / ".venv").glob(f".{pins.DEV_LOCK}-*"))) == 1
    assert "Making .venv" not in make(checkout, "--dry-run", "format").stdout

    lock.write_text("# another lock\n", encoding="utf-8")
    assert "Making .venv" in make(checkout, "--dry-run", "format").stdout

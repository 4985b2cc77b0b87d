"""What a record says about where and with what it was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from vlmeter import __version__
from vlmeter.backends.device import Device
from vlmeter.records.fingerprint import versions


def source_commit() -> str | None:
    """Commit of the checkout that vlmeter runs from, with "+changes" if files differ from it; None outside one.

    Where the code travels without its history (a container, a copy on a node), VLMETER_COMMIT says what it is.
    """
    if told := os.environ.get("VLMETER_COMMIT"):
        return told
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit


def _cpu_governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text().strip()
    except OSError:
        return None


def essentials() -> dict[str, str]:
    """Say in a few words what vlmeter runs on here, for a report of a defect; no model library is imported."""
    found = {
        "vlmeter": __version__,
        "commit": source_commit() or "not known: no checkout",
        "package": str(Path(__file__).resolve().parents[1]),
        "python": f"{platform.python_version()}, {sys.executable}",
        "platform": platform.platform(),
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "GPUs": ", ".join(_gpus()) or "none that NVML knows",
    }
    return found | {name: version for name, version in versions().items() if name != "python"} | _tools()


def _tools() -> dict[str, str]:
    found = {}
    for name in ("snakemake", "pandas", "pydantic"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _gpus() -> list[str]:
    """Names of the GPUs with their driver; empty where there is no NVML."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [f"{pynvml.nvmlDeviceGetName(handle)}, driver {driver}" for handle in handles]
    except pynvml.NVMLError as error:
        return [f"NVML says {error}"]
    finally:
        pynvml.nvmlShutdown()


def snapshot(device: Device) -> dict[str, Any]:
    """Describe device, software and host; torch is asked where a backend has loaded it."""
    torch = sys.modules.get("torch")
    return {
        "device": ", ".join(card.name for card in device.cards),
        "device_model": device.model,
        "device_uuid": device.uuid,
        "device_memory_bytes": device.memory_bytes,
        "driver": device.driver,
        "cuda": torch.version.cuda if torch else None,
        "torch_threads": torch.get_num_threads() if torch else None,
        "vlmeter": __version__,
        "commit": source_commit(),
        "versions": dict(versions()),
        "platform": platform.platform(),
        "logical_cores": os.cpu_count(),
        "cpu_governor": _cpu_governor(),
    }

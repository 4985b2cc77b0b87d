"""What a device can do at most, as a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.numbers.medians import median_estimate

CEILINGS_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ceiling(_Part):
    """One measured limit: the median of its samples and the 95 % interval of that."""

    value: float
    low: float
    high: float
    samples: tuple[float, ...]


class Ceilings(_Part):
    """What one device can do in one number format."""

    ceilings_version: int = CEILINGS_VERSION
    device_identity: str
    device_model: str
    device_uuid: str | None
    driver: str | None
    dtype: str
    torch_threads: int
    versions: dict[str, str]
    measured_at: str
    copy_bytes_per_s: Ceiling
    matrix_flops_per_s: Ceiling
    matrix_side: int
    launch_ms: Ceiling


def ceiling_of(samples: list[float]) -> Ceiling:
    """Summarise samples (five or more) of a ceiling."""
    estimate = median_estimate(samples, in_order=True)
    return Ceiling(value=estimate.value, low=estimate.low, high=estimate.high, samples=tuple(samples))


def write_ceilings(path: Path, ceilings: Ceilings) -> None:
    """Write ceilings atomically."""
    write_atomically(path, (ceilings.model_dump_json(indent=1) + "\n").encode())


def read_ceilings(path: Path) -> Ceilings:
    """Read ceilings; raises UserError on a file that is not such, or is of another version."""
    try:
        data = json.loads(path.read_bytes())
        if data["ceilings_version"] != CEILINGS_VERSION:
            raise UserError(
                f"{path}: ceilings_version is {data['ceilings_version']!r}, and this vlmeter reads "
                f"{CEILINGS_VERSION}; delete it and they are measured again"
            )
        return Ceilings.model_validate(data)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; the workflow measures it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise UserError(
            f"{path} holds no ceilings ({type(error).__name__}); delete it and they are measured again"
        ) from None


def one_card(model: str) -> str:
    """Model of one of the cards of a device that may be several."""
    return re.sub(r"^\d+ x ", "", model)

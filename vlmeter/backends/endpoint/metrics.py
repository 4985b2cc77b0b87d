"""Read what a server exposes for Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vlmeter.backends.endpoint.client import Client

#: A sample of the text format: name, labels, value; a time stamp may follow.
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})?\s+(\S+)")


@dataclass(frozen=True)
class Metrics:
    """All metrics at one moment, each summed over its labels; buckets are left out."""

    values: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Read Prometheus' text format; lines that are no samples are skipped."""
        values: dict[str, float] = {}
        for line in text.splitlines():
            found = _SAMPLE.match(line)
            if found is None or found[1].endswith(("_bucket", "_created")):
                continue
            try:
                values[found[1]] = values.get(found[1], 0.0) + float(found[3])
            except ValueError:
                continue
        return cls(values)

    def growth(self, name: str, *, since: Metrics) -> float:
        """By how much a metric is larger than in an earlier reading; one that was not there yet counts from 0."""
        return self.values.get(name, 0.0) - since.values.get(name, 0.0)


def read_metrics(client: Client, path: str | None) -> Metrics | None:
    """Ask a server for its metrics; None if it has none there."""
    if path is None:
        return None
    response = client.call("GET", path)
    return Metrics.parse(response.body.decode(errors="replace")) if response.status == 200 else None

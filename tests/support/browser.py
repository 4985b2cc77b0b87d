"""A page in headless Chromium with the network cut, and a witness of everything that it says or asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

#: Widths of a phone, a tablet and a desktop, in CSS px.
WIDTHS_PX = (390, 768, 1280)

#: Chromium asks for nothing of its own accord, and needs no GPU.
_OPTIONS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own Chromium; playwright brings none."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=list(_OPTIONS))
        yield browser
        browser.close()


@dataclass
class Witness:
    """What a page did besides being looked at."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, path: Path, *, width_px: int = 1280, **options: Any) -> Iterator[tuple[Page, Witness]]:
    """Open a file offline; `options` are those of a browser context."""
    context = browser.new_context(
        offline=True, accept_downloads=True, viewport={"width": width_px, "height": 900}, **options
    )
    page, witness = context.new_page(), Witness()
    page.on(
        "console",
        lambda message: witness.complaints.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: witness.complaints.append(str(error)))
    page.on("request", lambda request: witness.requests.append(request.url))
    page.goto(path.as_uri())
    yield page, witness
    context.close()


def outside(witness: Witness, path: Path) -> list[str]:
    """Requests for anything but the file itself and what it holds."""
    own = (path.as_uri(), "data:", "blob:")
    return [address for address in witness.requests if not address.startswith(own)]

"""A request before it is sent: where to, and its bytes.

The bytes are made beforehand and the making is timed apart, so that a request's own clock holds no base64 and no JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from vlmeter.backends.clock import HostClock
from vlmeter.common.errors import UserError

#: The API's own folder, beside which a server keeps what is not the API (`/health`, `/metrics`).
API = "/v1"


@dataclass(frozen=True)
class Address:
    """Where a server is: the parts of its URL. path is that of the API, such as /v1."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL; raises UserError for one that is none, or that holds what belongs elsewhere."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"url: {url!r} is no address of a server ({error})") from None
        if parts.username is not None or parts.password is not None:
            raise UserError("url: holds a user or a password; a key is named by its variable, in api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"url: {url!r} must begin with http:// or https:// and name a host")
        if parts.query or parts.fragment:
            raise UserError(f"url: {url!r} must end with the path of the API, such as {API}")
        return cls(
            parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme], parts.path.rstrip("/")
        )

    @property
    def netloc(self) -> str:
        """Host and port, as a request's Host names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def root(self) -> str:
        """Path beside the API's, under which `/health` and the like are found."""
        return self.path.removesuffix(API)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}"


@dataclass(frozen=True)
class Picture:
    """An encoded image, such as a PNG; its format and size are a part of what is measured."""

    data: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True)
class Chat:
    """One request: an image, a text, and how long the answer is to be.

    fields: what else the request holds, by name, as the server takes it (`Capabilities.fields`).
    """

    model: str
    text: str
    picture: Picture | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Body:
    """A request's bytes, and the milliseconds of encoding them: base64 of the picture, and JSON."""

    payload: bytes = field(repr=False)
    encode_ms: float
    picture_bytes: int


def encode(chat: Chat, *, host_ms: Callable[[], float] | None = None) -> Body:
    """Make the bytes of a request: the image first, as a data URL, then the text."""
    now = host_ms or HostClock().host_ms
    start_ms = now()
    content: list[dict[str, Any]] = []
    if chat.picture is not None:
        data = base64.b64encode(chat.picture.data).decode("ascii")
        content.append({"type": "image_url", "image_url": {"url": f"data:{chat.picture.media_type};base64,{data}"}})
    content.append({"type": "text", "text": chat.text})
    request = {"model": chat.model, "messages": [{"role": "user", "content": content}], "stream": True, **chat.fields}
    payload = json.dumps(request, separators=(",", ":")).encode()
    size = 0 if chat.picture is None else len(chat.picture.data)
    return Body(payload, encode_ms=now() - start_ms, picture_bytes=size)

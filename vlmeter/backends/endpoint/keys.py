"""What a study says of a served subject."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlmeter.backends.endpoint.engines import ENGINES, get_engine
from vlmeter.backends.endpoint.request import Address
from vlmeter.common.errors import UserError
from vlmeter.models.encoding import DEFAULT_QUALITY, Encoding, ImageFormat, Quality


class Endpoint(BaseModel):
    """Where the server is, or how one is started."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str | None = Field(None, description="address of a server that runs, such as http://127.0.0.1:8000/v1")
    engine: str | None = Field(
        None,
        description=f"server that the session starts and ends: {', '.join(sorted(ENGINES))}",
        json_schema_extra={"enum": [*sorted(ENGINES), None]},
    )
    python: str | None = Field(
        None, description="the Python that has the engine (llama.cpp: its program); absent: vlmeter's own"
    )
    options: list[str] = Field(default_factory=list, description="options of the engine's own, one text each")
    model: str | None = Field(None, description="name by which requests call the model; absent: the first one listed")
    api_key_env: str | None = Field(None, description="environment variable that holds the key; never the key itself")
    image_format: ImageFormat = Field("png", description="format in which pictures are sent")
    image_quality: Quality = Field(DEFAULT_QUALITY, description="quality of JPEG pictures")
    caches: bool = Field(
        False,
        description="true: leave a started server its caches, and measure by subtraction what they save (engines that "
        "take a cache_salt); else they are switched off",
    )
    marks: bool = Field(True, description="look inside a started vLLM for the phases of a request")
    ready_seconds: float = Field(900.0, gt=0, description="how long a started server may take to be ready")
    answer_seconds: float = Field(600.0, gt=0, description="how long one answer may take")

    @model_validator(mode="after")
    def _one_of_two(self) -> Endpoint:
        if (self.url is None) == (self.engine is None):
            raise ValueError("exactly one of url (a server that runs) and engine (one that is started) is wanted")
        if self.engine is not None and self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} is not known; legal: {', '.join(sorted(ENGINES))}")
        if self.engine is not None and self.caches and not get_engine(self.engine).salts:
            salting = ", ".join(name for name in sorted(ENGINES) if get_engine(name).salts)
            raise ValueError(
                f"caches: true is given, and {self.engine} takes no cache_salt that keeps a request from its caches; "
                f"legal with: {salting}"
            )
        if self.url is not None:
            for key in ("python", "options"):
                if getattr(self, key):
                    raise ValueError(f"{key} is given, and the server at url is not started by vlmeter")
            try:
                Address.parse(self.url)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    @property
    def encoding(self) -> Encoding:
        """How pictures are sent, unless a cell says otherwise."""
        return Encoding.of(self.image_format, self.image_quality)


class Keys(BaseModel):
    """What a study says of a served subject."""

    endpoint: Endpoint | None = Field(None, description="where the server is, or how one is started")

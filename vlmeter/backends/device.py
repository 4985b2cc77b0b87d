"""A device, as sessions hold it and records name it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """One device: `name` for torch ("cuda:0", "cpu"), `model` as the maker calls it, `uuid` of this very card."""

    name: str
    model: str
    uuid: str | None
    driver: str | None
    memory_bytes: int
    free_bytes: int
    #: further cards, if the model is spread over several; `model` and the sizes are then those of all together
    beside: tuple[Device, ...] = ()

    @property
    def cards(self) -> tuple[Device, ...]:
        """The cards that this stands for, the first one included."""
        return (self, *self.beside)

    @property
    def identity(self) -> str:
        """What a record's numbers belong to: the model of the device and its driver."""
        return f"{self.model}, driver {self.driver}" if self.driver else self.model

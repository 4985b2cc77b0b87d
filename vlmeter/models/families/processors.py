"""Find processors in transformers, also where it says that they need torchvision and they do not.

A name that transformers takes for missing stands for a placeholder, which still says in which module the class
is. transformers 5.17 takes the Pillow image processors of Idefics3 and SmolVLM for such; they need nothing of the kind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

#: Processors that transformers' AutoProcessor does not find without torchvision, and `processor_class` does.
BY_ITSELF = ("PixtralProcessor",)

_PIXTRAL = "transformers.models.pixtral"


def class_named(name: str) -> Any:
    """Return transformers' class of this name from its own module; raises ImportError for what the module lacks."""
    import transformers

    return getattr(import_module(getattr(transformers, name).__module__), name)


def processor_class(name: str) -> Any:
    """Return transformers' processor of this name.

    The module of PixtralProcessor takes one function of sizes from the image processor that needs torchvision. The one
    that needs Pillow alone has the same function, and stands in for the other while the module is imported; the
    processor is transformers' own either way.
    """
    from transformers.utils.import_utils import is_torchvision_available

    if name != "PixtralProcessor" or is_torchvision_available():
        return class_named(name)
    with _stand_in(f"{_PIXTRAL}.image_processing_pixtral", f"{_PIXTRAL}.image_processing_pil_pixtral"):
        return class_named(name)


@contextmanager
def _stand_in(wanted: str, at_hand: str) -> Iterator[None]:
    sys.modules[wanted] = import_module(at_hand)
    try:
        yield
    finally:
        del sys.modules[wanted]

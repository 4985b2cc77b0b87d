"""SmolVLM: what is predicted for a size is what transformers' processor makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vlmeter.common.errors import Unsupported
from vlmeter.models.families.base import SubjectSpec
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.smolvlm import FAMILY, GEOMETRY
from vlmeter.models.families.splitting import SplittingGeometry

from .support.native import write_native_checkpoint
from .support.processors import FREE, differences, kinds, random_sizes, sane_sizes, splitting_tokenizer


def processor_for(geometry: SplittingGeometry) -> Any:
    """Idefics3's processor around SmolVLM's image processor: SmolVLM's own adds what it does with videos."""
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    images = SmolVLMImageProcessorPil(
        size={"longest_edge": geometry.longest_edge_px}, max_image_size={"longest_edge": geometry.tile_px}
    )
    return Idefics3Processor(images, splitting_tokenizer(), image_seq_len=geometry.tokens_per_tile)


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_sizes_are_predicted_as_the_processor_makes_them() -> None:
    assert differences(GEOMETRY, processor_for(GEOMETRY), random_sizes(300, seed=2), image_token="<image>") == []


def test_the_settings_of_the_smaller_models_are_predicted_as_well() -> None:
    geometry = replace(GEOMETRY, longest_edge_px=4 * 512, tile_px=512, tokens_per_tile=64)
    assert differences(geometry, processor_for(geometry), random_sizes(60, seed=2), image_token="<image>") == []


def test_idefics3_and_smolvlm_put_the_same_tokens_around_an_image() -> None:
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

    idefics = processor_for(GEOMETRY)
    smolvlm = SmolVLMProcessor.__new__(SmolVLMProcessor)  # its constructor wants num2words and torchvision
    for name in ("image_seq_len", "fake_image_token", "image_token"):
        setattr(smolvlm, name, getattr(idefics, name))
    smolvlm.global_image_token = idefics.global_image_tag
    for rows, columns in [(0, 0), (1, 4), (3, 4), (4, 4)]:
        image = {"rows": [[rows]], "cols": [[columns]]}
        assert smolvlm.replace_image_token(image, 0) == Idefics3Processor.replace_image_token(idefics, image, 0)


def test_only_four_counts_are_reachable() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    assert kinds(GEOMETRY, candidates) == {(81 * (4 * n + 1), 4 * n + 1) for n in (1, 2, 3, 4)}
    assert kinds(GEOMETRY, sane_sizes(3000, seed=1)) == kinds(GEOMETRY, candidates)


# --- a checkpoint's own processor ----------------------------------------------------------------------


@pytest.mark.skipif(find_spec("num2words") is not None, reason="num2words is installed")
def test_smolvlms_own_processor_says_what_to_install(tmp_path: Path) -> None:
    assert isinstance(FAMILY, NativeFamily)
    folder = write_native_checkpoint(FAMILY, tmp_path / "checkpoint")
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**settings, "processor_class": "SmolVLMProcessor"}))
    spec = SubjectSpec(preset=None, weights=str(folder), revision=None, dtype="float32", attention="sdpa", seed=0)
    with pytest.raises(Unsupported, match=r"`num2words` is required .*pip install num2words"):
        FAMILY.load(spec, device="cpu")


def test_the_real_scales_have_the_parameters_that_the_published_checkpoints_have() -> None:
    """As the hub counts them in the safetensors of HuggingFaceTB/SmolVLM2-...-Instruct."""
    published = {"2.2b": 2_246_784_880, "500m": 507_482_304, "256m": 256_484_928}
    for preset, parameters in published.items():
        assert sum(FAMILY.scales[preset].parameters.values()) == parameters

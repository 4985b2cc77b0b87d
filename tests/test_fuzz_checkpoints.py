"""Any file of a checkpoint may hold anything: it is read, or refused in one sentence that names the checkpoint.

What once ended in a traceback, or in a count that the real processor does not make, stays in
`tests/data/field/checkpoints.json` and is tried every time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.native import spec_of
from vlmeter.common.errors import UserError
from vlmeter.models.checkpoints import Checkpoint, open_checkpoint
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.models.families.preset_data import read_presets
from vlmeter.models.families.registry import FAMILIES, family_of_checkpoint, get_family
from vlmeter.models.packing import packing_of
from vlmeter.models.pretrained import image_processor_class
from vlmeter.models.weights import announced_values, tensor_files

NATIVE = [name for name in FAMILIES if get_family(name).loads_by_transformers and name != "generic"]
SIZES = ((1, 1), (640, 480), (37, 900), (5000, 5))
CORPUS = Path(__file__).parent / "data" / "field" / "checkpoints.json"

#: What a key may hold that its author did not think of, beside numbers that are near right ones.
ODD = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 3, 14, 28, 224, 336, 364, 10**12, 0.5, 1.0, float("nan"), "", "12", "large"])
    | st.sampled_from(
        [[], [[]], [1, 2], [[336, 672]], {}, {"height": 28}, {"height": 28, "width": 56}, {"longest_edge": 364}]
    )
    | st.sampled_from(
        [{"shortest_edge": 56, "longest_edge": None}, {"longest_edge": "1"}, {"min_pixels": 4}, ["a", "b"]]
    )
)
KEYS = (
    *("size", "crop_size", "patch_size", "merge_size", "min_pixels", "max_pixels", "do_resize", "max_image_size"),
    *("do_image_splitting", "image_grid_pinpoints", "min_patches", "max_patches", "max_crops", "overlap_margins"),
    *("pooling_size", "image_seq_len", "image_seq_length", "spatial_merge_size", "num_image_tokens"),
    *("num_additional_image_tokens", "vision_feature_select_strategy", "vision_aspect_ratio", "image_use_col_tokens"),
    *("use_single_crop_col_tokens", "image_processor"),
)
CHANGES = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=4)


def files_of(name: str) -> dict[str, Any]:
    """The JSON files of a family's toy, as far as its images are concerned."""
    entry = read_presets(name)["nano"]
    return {
        "config.json": entry["config"],
        "processor_config.json": entry.get("processor_arguments", {}),
        "preprocessor_config.json": entry["processor_config"],
    }


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def read(folder: Path) -> list[ImageTokens]:
    """Look at a folder as planning does; all that may come out of it is a UserError."""
    checkpoint = open_checkpoint(folder, weights=False)
    family = get_family(family_of_checkpoint(checkpoint))
    spec = spec_of(preset=None, weights=str(folder))
    packing_of(checkpoint)
    announced_values(checkpoint)
    family.parameters(spec)
    family.kv_bytes_per_token(spec)
    geometry = family.geometry(spec)
    geometry.limit(options=ImageOptions())
    found = []
    for size in SIZES:
        try:
            found.append(geometry.image_tokens(*size, options=ImageOptions()))
        except UserError:
            continue
    return found


def is_one_sentence(error: UserError, folder: Path) -> None:
    assert str(folder) in str(error)
    assert "\n" not in str(error)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "checkpoint"


@pytest.mark.parametrize("name", NATIVE)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(processor=CHANGES, image=CHANGES, nested=st.booleans())
def test_any_settings_of_a_processor_are_counted_or_refused(
    folder: Path, name: str, processor: dict[str, Any], image: dict[str, Any], nested: bool
) -> None:
    files = files_of(name)
    own, images = {**files["processor_config.json"], **processor}, {**files["preprocessor_config.json"], **image}
    if nested:
        own = {**own, "image_processor": images}
    write(folder, {**files, "processor_config.json": own, "preprocessor_config.json": images})
    try:
        for image_tokens in read(folder):
            assert image_tokens.crops >= 1
            assert image_tokens.vision_tokens >= 1
    except UserError as error:
        is_one_sentence(error, folder)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIG_KEYS = st.sampled_from(
    [
        *("model_type", "vision_config", "text_config", "quantization_config", "dtype", "torch_dtype", "auto_map"),
        *("transformers_weights", "compression_config", "mm_vision_tower"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NATIVE),
    config=st.dictionaries(CONFIG_KEYS, ANY_JSON, max_size=3),
    index=st.none() | ANY_JSON | st.dictionaries(st.sampled_from(["weight_map", "metadata"]), ANY_JSON),
    text=st.none() | st.sampled_from(["", "{", "[]", "null", '"x"', "\x00", "{}" * 2, "\ufeff{}"]),
    spoiled=st.sampled_from(["config.json", "processor_config.json", "preprocessor_config.json"]),
)
def test_any_files_of_a_checkpoint_are_read_or_refused(
    folder: Path, name: str, config: dict[str, Any], index: Any, text: str | None, spoiled: str
) -> None:
    files = files_of(name)
    files["config.json"] = {**files["config.json"], **config}
    if index is not None:
        files["model.safetensors.index.json"] = index
    if text is not None:
        files[spoiled] = text
    write(folder, files)
    for look in (lambda: read(folder), lambda: tensor_files(folder)):
        try:
            look()
        except UserError as error:
            is_one_sentence(error, folder)


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    for spoiled in ("config.json", "processor_config.json", "preprocessor_config.json"):
        write(folder, files_of("pixtral"))
        (folder / spoiled).write_bytes(b"\xff\xfe{\x00}\x00")
        with pytest.raises(UserError, match=f"{spoiled}: not JSON"):
            read(folder)


def corpus() -> Iterator[Any]:
    for case in json.loads(CORPUS.read_text(encoding="utf-8")):
        yield pytest.param(case, id=case["what"])


@pytest.mark.parametrize("case", list(corpus()))
def test_what_once_failed_is_read_as_it_should_be(folder: Path, case: dict[str, Any]) -> None:
    files = files_of(case["family"])
    for name, changes in case["files"].items():
        files[name] = {**files.get(name, {}), **changes} if isinstance(changes, dict) else changes
    write(folder, files)
    if "says" in case:
        with pytest.raises(UserError) as refused:
            read(folder)
        assert case["says"] in str(refused.value)
        is_one_sentence(refused.value, folder)
    else:
        family = get_family(case["family"])
        image = family.geometry(spec_of(preset=None, weights=str(folder))).image_tokens(
            *case["size"], options=ImageOptions()
        )
        assert image.vision_tokens == case["vision_tokens"]


# --- against the published code ------------------------------------------------------------------------

PATCHES = st.sampled_from([7, 14, 16, 28])
PIXELS = st.sampled_from([1, 784, 3136, 50_000, 200_704])
SIDES = st.tuples(st.integers(1, 300), st.integers(1, 300))


@settings(max_examples=60, deadline=None)
@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "patch_size": PATCHES,
            "merge_size": st.sampled_from([1, 2, 3]),
            "min_pixels": PIXELS,
            "max_pixels": PIXELS,
            "size": st.fixed_dictionaries({"shortest_edge": PIXELS, "longest_edge": PIXELS}),
        },
    ),
    size=SIDES,
)
def test_qwens_settings_are_read_as_the_published_code_reads_them(
    changes: dict[str, Any], size: tuple[int, int]
) -> None:
    family: Any = get_family("qwen2_5_vl")
    try:
        found = family.geometry_of({"image_processor": changes}).image_tokens(*size, options=ImageOptions())
    except UserError:
        return
    real = image_processor_class("Qwen2VLImageProcessor")(**changes)
    patches = real.get_number_of_image_patches(size[1], size[0])
    assert found.vision_tokens == patches // real.merge_size**2


def test_a_checkpoint_on_the_hub_is_named_by_its_id(folder: Path) -> None:
    write(folder, {**files_of("pixtral"), "preprocessor_config.json": "{"})
    with pytest.raises(UserError, match=r"preprocessor_config\.json: not JSON"):
        Checkpoint("acme/spoon", folder).processor_config()

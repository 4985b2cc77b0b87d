"""Models without a family of their own are taken apart at run time, or refused with a word on what to do."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.native import spec_of
from tests.support.unlisted import UNLISTED
from vlmeter.common.errors import UserError
from vlmeter.measure.count_pass import count_pass
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.generic import FAMILY, LoadedGeneric
from vlmeter.models.families.registry import FAMILIES
from vlmeter.models.image_sizes import sizes_for
from vlmeter.records.fingerprint import fingerprint, stale_parts
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import Subject

from .support.studies import study_of

ROOT = Path(__file__).parents[1]
PLAIN = ImageOptions()


@pytest.fixture(scope="session", params=list(UNLISTED))
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name = str(request.param)
    return name, UNLISTED[name].write(tmp_path_factory.mktemp("unlisted") / name)


@pytest.fixture(scope="session")
def loaded(toy: tuple[str, Path]) -> LoadedGeneric:
    return load(toy[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return UNLISTED["deepseek_vl"].write(tmp_path / "toy")


def load(folder: Path, *, device: str = "cpu", **changes: Any) -> LoadedGeneric:
    found = FAMILY.load(spec_of(**{"preset": str(folder), **changes}), device=device)
    assert isinstance(found, LoadedGeneric)
    return found


def inputs(loaded: LoadedGeneric, *, width: int = 200, height: int = 100) -> dict[str, torch.Tensor]:
    picture = Image.effect_noise((width, height), 80).convert("RGB")
    return dict(loaded.prepare(picture, None, text_tokens=40, options=PLAIN).tensors)


# --- taking apart -----------------------------------------------------------------------------------


def test_every_toy_is_of_a_model_type_that_no_family_lists() -> None:
    assert not set(UNLISTED) & set(FAMILIES)
    assert len(UNLISTED) >= 4


def test_the_parts_of_a_model_are_found_and_none_is_empty(loaded: LoadedGeneric) -> None:
    assert all(loaded.parameters.values())
    assert sum(loaded.parameters.values()) == sum(p.numel() for p in loaded.model.parameters())
    assert loaded.parameters["llm_blocks"] > loaded.parameters["projector"]
    assert loaded.notes == []


def test_its_marks_cover_the_forward_in_the_order_of_the_phases(loaded: LoadedGeneric) -> None:
    fired: list[str | None] = []
    handles = []
    for boundary in loaded.boundaries():

        def note(*_: object, closes: str | None = boundary.closes) -> None:
            fired.append(closes)

        before = boundary.when == "before"
        place = boundary.module
        handles.append(place.register_forward_pre_hook(note) if before else place.register_forward_hook(note))
    with torch.inference_mode():
        loaded.prefill(inputs(loaded))
    for handle in handles:
        handle.remove()
    order = [closes for closes, _ in groupby(fired)]  # a projector may run more than once
    assert order == [None, "merge", "vision_encoder", "projector", "merge", "llm_blocks", "head"]


def test_its_greedy_steps_choose_what_generate_chooses(loaded: LoadedGeneric) -> None:
    tensors = inputs(loaded, width=130, height=210)
    given = {name: value for name, value in tensors.items() if name not in ("position_ids", "rope_deltas")}
    loaded.model.generation_config.eos_token_id = None
    wanted = loaded.model.generate(**given, max_new_tokens=24, do_sample=False)[0, -24:].tolist()
    with torch.inference_mode():
        logits, cache = loaded.prefill(tensors)
        tokens = [logits.argmax(dim=-1, keepdim=True)]
        while len(tokens) < 24:
            tokens.append(loaded.decode(tokens[-1], cache).argmax(dim=-1, keepdim=True))
    assert torch.cat(tokens, dim=1)[0].tolist() == wanted


def test_its_vision_runs_alone(loaded: LoadedGeneric) -> None:
    with torch.inference_mode():
        assert loaded.vision(inputs(loaded)) is not None


def test_its_work_is_counted_on_shapes_alone(toy: tuple[str, Path]) -> None:
    shapes = load(toy[1], device="meta")
    flops = {phase.phase: phase.flops for phase in count_pass(shapes, inputs(shapes)).prefill}
    assert all(flops[phase] > 0 for phase in ("vision_encoder", "projector", "llm_blocks", "head"))


# --- counts -----------------------------------------------------------------------------------------


def test_counts_are_those_of_the_published_code(toy: tuple[str, Path]) -> None:
    name, folder = toy
    found = FAMILY.geometry(spec_of(preset=str(folder))).image_tokens(200, 100, options=PLAIN)
    assert (found.crops, found.vision_tokens) == (UNLISTED[name].crops, UNLISTED[name].vision_tokens)


@pytest.mark.parametrize("size", [(97, 310), (640, 480), (33, 33)])
def test_the_geometry_and_a_loaded_model_count_alike(
    toy: tuple[str, Path], loaded: LoadedGeneric, size: tuple[int, int]
) -> None:
    predicted = FAMILY.geometry(spec_of(preset=str(toy[1]))).image_tokens(*size, options=PLAIN)
    made = loaded.prepare(Image.new("RGB", size), None, text_tokens=33, options=PLAIN)
    assert (predicted.crops, predicted.vision_tokens, predicted.special_tokens) == (
        made.counts.crops,
        made.counts.vision_tokens,
        made.counts.special_tokens,
    )
    assert made.counts.text_tokens == 33


def test_special_tokens_around_an_image_are_not_text(tmp_path: Path) -> None:
    """A chat template writes them; they are gone in a prompt without an image."""
    loaded = load(UNLISTED["qwen2_vl"].write(tmp_path / "toy"))
    assert loaded.prepare(Image.new("RGB", (99, 99)), "the", text_tokens=None, options=PLAIN).counts.special_tokens == 2


def test_a_count_is_found_among_the_sizes_that_are_tried(tmp_path: Path) -> None:
    folder = UNLISTED["aya_vision"].write(tmp_path / "toy")
    geometry = FAMILY.geometry(spec_of(preset=str(folder)))
    assert sizes_for(geometry, crops=3, options=PLAIN)[0].crops == 3
    with pytest.raises(UserError, match="the sizes that family generic tries, 112 to 1,344 px"):
        sizes_for(geometry, vision_tokens=5, options=PLAIN)


def test_the_sizes_that_are_tried_are_few_and_in_one_order() -> None:
    geometry = FAMILY.geometry(spec_of())
    sizes = list(geometry.candidates(options=PLAIN))
    assert sizes == list(geometry.candidates(options=PLAIN))
    assert len(sizes) == len(set(sizes)) <= 100


@pytest.mark.parametrize("options", [ImageOptions(max_crops=4), ImageOptions(force_tiling=(1, 2))])
def test_choices_of_crops_are_refused(options: ImageOptions) -> None:
    with pytest.raises(UserError, match="family generic cannot set them"):
        FAMILY.geometry(spec_of()).image_tokens(64, 64, options=options)


def test_tilings_are_refused() -> None:
    geometry = FAMILY.geometry(spec_of())
    assert geometry.tilings(options=PLAIN) == []
    with pytest.raises(UserError, match="family generic knows no tilings"):
        geometry.size_for_tiling((1, 1), options=PLAIN)


# --- the toy of its own -----------------------------------------------------------------------------


def test_the_nano_preset_knows_what_it_is_made_of() -> None:
    spec = spec_of()
    loaded = FAMILY.load(spec, device="cpu")
    assert FAMILY.parameters(spec) == loaded.parameters
    made = loaded.prepare(Image.new("RGB", (99, 99)), "why is it blue?", text_tokens=None, options=PLAIN)
    assert FAMILY.text_tokens(spec, "why is it blue?") == made.counts.text_tokens
    assert FAMILY.kv_bytes_per_token(spec) == 2 * 2 * 2 * 16 * 4


def test_a_published_configuration_is_a_preset(folder: Path) -> None:
    subject = Subject(family="generic", preset=str(folder), dtype="float32")
    assert subject.weights == "random"
    spec = spec_of(preset=str(folder))
    assert FAMILY.parameters(spec) is None
    assert FAMILY.kv_bytes_per_token(spec) == 2 * 3 * 2 * 16 * 4


def test_another_configuration_under_the_same_name_makes_cells_stale(folder: Path) -> None:
    cell = build_plan(study_of())[0]
    subject = Subject(family="generic", preset=str(folder), dtype="float32")
    before = fingerprint(cell, subject)
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert stale_parts(before, fingerprint(cell, subject)) == ("checkpoint",)


# --- what cannot be taken apart ---------------------------------------------------------------------


def test_a_phase_that_cannot_be_told_apart_is_said_in_log_and_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A projection that does not run as a module of its own counts to the merge."""
    from transformers.models.deepseek_vl.modeling_deepseek_vl import DeepseekVLAligner

    from vlmeter.backends.clock import make_clock
    from vlmeter.backends.eager_runner import EagerRunner

    monkeypatch.setattr(DeepseekVLAligner, "__call__", lambda self, *args: self.forward(*args))
    with caplog.at_level(logging.WARNING):
        loaded = load(folder)
    assert "projector: no module between vision encoder and decoder was found" in caplog.text
    assert [boundary.closes for boundary in loaded.boundaries()] == [
        None,
        "merge",
        "vision_encoder",
        "merge",
        "llm_blocks",
        "head",
    ]
    runner = EagerRunner(loaded=loaded, device="cpu", clock=make_clock("cpu"))
    assert "projecting counts to" in runner.notes[0]


def test_a_model_without_a_vision_encoder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DeepseekVLForConditionalGeneration

    monkeypatch.setattr(DeepseekVLForConditionalGeneration, "get_encoder", lambda self, modality=None: self)
    with pytest.raises(UserError, match=r"no vision encoder was found in Deepseek.*CONTRIBUTING\.md says how"):
        load(folder)


def test_a_model_without_decoder_blocks_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import DeepseekVLForConditionalGeneration

    monkeypatch.setattr(DeepseekVLForConditionalGeneration, "get_decoder", lambda self: nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"no decoder blocks were found in Deepseek.*CONTRIBUTING\.md says how"):
        load(folder)


def test_a_model_whose_first_prompt_fails_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.deepseek_vl.modeling_deepseek_vl import DeepseekVLModel

    monkeypatch.setattr(DeepseekVLModel, "forward", lambda self, **_: {}["an input that nobody knows"])
    with pytest.raises(UserError, match=r"a first prompt fails \('an input that nobody knows'\)"):
        load(folder)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "spoon"}))
    with pytest.raises(UserError, match="transformers does not know its configuration"):
        load(folder)


# --- code of a checkpoint ---------------------------------------------------------------------------

OWN_CODE = """
from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration
print("CODE WAS RUN")
class SpoonConfig(DeepseekVLConfig):
    model_type = "spoon"
class SpoonModel(DeepseekVLForConditionalGeneration):
    config_class = SpoonConfig
"""

LOAD = """
import sys
from tests.support.native import spec_of
from vlmeter.common.errors import UserError
from vlmeter.models.families.generic import FAMILY
try:
    spec = spec_of(preset=None, weights=sys.argv[1], trust_remote_code=sys.argv[2] == "trusted")
    print(type(FAMILY.load(spec, device="meta").model).__name__)
except UserError as error:
    print(error)
"""


def test_code_of_a_checkpoint_runs_on_the_studys_word_alone(folder: Path, tmp_path: Path) -> None:
    (folder / "spoon.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "spoon.SpoonConfig", "AutoModelForImageTextToText": "spoon.SpoonModel"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "spoon", "auto_map": code}))

    def run(trust: str) -> str:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(folder), trust],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    said = run("not trusted")
    assert "CODE WAS RUN" not in said
    assert "transformers does not know its configuration" in said
    assert run("trusted").split() == ["CODE", "WAS", "RUN", "SpoonModel"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "acme/spoon"}, "revision None may come to mean other code"),
        ({"weights": "acme/spoon", "revision": "main"}, "revision 'main' may come to mean other code"),
        (
            {"family": "molmo", "weights": "acme/spoon", "revision": "a" * 40},
            "family molmo reads checkpoints by itself",
        ),
    ],
)
def test_trust_takes_a_commit_or_a_folder(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subject(**{"family": "generic", "trust_remote_code": True, **changes})


def test_trust_in_a_commit_is_taken() -> None:
    assert Subject(family="generic", weights="acme/spoon", revision="a" * 40, trust_remote_code=True).trust_remote_code

"""Write a preset as a checkpoint folder that a serving engine can run.

An engine wants files where vlmeter wants a name: configuration with `architectures`, tokenizer, processor, and the chat
template that its chat API puts prompts together with. The template written here gives, for one image and one question,
exactly the prompt of the family's own template, so that what the family counts is what the server has to count.

Weight files are written only if asked for: some engines make up weights of their own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily, Scale, made_processor
from vlmeter.models.families.random_weights import random_model
from vlmeter.models.families.registry import get_family

#: Engines' attention kernels know certain head widths alone; 64 is among those of all that were tried, the toys' own
#: 16 and 32 are not.
HEAD_VALUES = 64

#: A space, as byte-level tokenizers write it.
_SPACE = "\u0120"

#: What a decoder puts in the place of bytes that are no character.
_NO_CHARACTER = "\ufffd"

#: What a preset's toy is told by: published models have wider heads than this.
_NARROW = 64


def write_checkpoint(
    folder: Path, *, family: str, preset: str, weights: bool = False, dtype: str = "bfloat16", seed: int = 0
) -> Path:
    """Write a preset's checkpoint into a folder, which is made; returns the folder.

    The heads of a toy are widened to `HEAD_VALUES`; a preset of a published model stays as it is. weights: write random
    weights too, in `dtype`, the same for the same seed. Raises UserError for a family that has no presets of this kind.
    """
    known = get_family(family)
    if not isinstance(known, NativeFamily):
        raise UserError(f"family: {family} cannot be written as a checkpoint; only families of transformers' own code")
    if preset not in known.scales:
        raise UserError(f"preset: {preset!r} is not known; legal for {family}: {', '.join(known.scales)}")
    scale = known.scales[preset]
    config = with_wide_heads(scale.config)
    folder.mkdir(parents=True, exist_ok=True)
    _write_processor(folder, scale, known.template)
    if weights:
        model = random_model(config, device="cpu", dtype=dtype, attention="sdpa", seed=seed)
        _never_choose(model, _silent_tokens(folder))
        model.save_pretrained(folder)
    _write_json(folder / "config.json", full_config(config, scale, dtype=dtype))
    ends = _ids(scale, scale.tokenizer.eos)
    _write_json(folder / "generation_config.json", {"eos_token_id": ends, "do_sample": False})
    return folder


def is_served_as_it_is(family: str, preset: str) -> bool:
    """Whether a preset's checkpoint has the preset's own shapes, and no wider heads; False for one that has none."""
    known = get_family(family)
    if not isinstance(known, NativeFamily) or preset not in known.scales:
        return False
    config = known.scales[preset].config
    return with_wide_heads(config) == config


def with_wide_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json with heads of the language model that engines' kernels know.

    Narrower ones are widened, and with them the model and whatever of the vision part has to fit it.
    """
    made = copy.deepcopy(dict(config))
    text, vision = made.get("text_config", made), made.get("vision_config", {})
    heads, width = text["num_attention_heads"], text["hidden_size"]
    values = text.get("head_dim") or width // heads
    if values >= _NARROW:
        return made
    wide = heads * HEAD_VALUES
    text["hidden_size"] = wide
    if "head_dim" in text:
        text["head_dim"] = HEAD_VALUES
    rope = text.get("rope_parameters") or {}
    if sections := rope.get("mrope_section"):
        rope["mrope_section"] = [section * HEAD_VALUES // values for section in sections]
    for name in ("out_hidden_size", "projection_dim"):
        if vision.get(name) == width and name == "out_hidden_size":
            vision[name] = wide
    return made


def full_config(config: Mapping[str, Any], scale: Scale, *, dtype: str) -> dict[str, Any]:
    """Return the whole content of config.json, with the class's defaults written out and `architectures`."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    made = AutoConfig.for_model(**copy.deepcopy(dict(config)))
    made.architectures = [MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[made.model_type]]
    made.dtype = dtype
    written: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
    named = {
        "bos_token_id": scale.tokenizer.bos,
        "eos_token_id": scale.tokenizer.eos,
        "pad_token_id": scale.tokenizer.pad,
    }
    written.update({name: _ids(scale, token) for name, token in named.items()})
    return written


def chat_template(template: Template) -> str:
    """Write a family's prompt as a chat template in Jinja: images where the family has its image, then the text.

    Of several messages the contents are put together in one prompt; there is one image and one question.
    """
    before, _, rest = template.text.partition("{image}")
    between, _, after = rest.partition("{question}")
    return (
        "{%- set found = namespace(image='', question='') -%}"
        "{%- for message in messages -%}"
        "{%- if message['content'] is string -%}"
        "{%- set found.question = found.question + message['content'] -%}"
        "{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' -%}{%- set found.question = found.question + part['text'] -%}"
        f"{{%- else -%}}{{%- set found.image = found.image + {_literal(template.image)} -%}}{{%- endif -%}}"
        "{%- endfor -%}"
        "{%- endif -%}"
        "{%- endfor -%}"
        f"{{{{- {_literal(before)} + found.image + {_literal(between)} + found.question + {_literal(after)} -}}}}"
    )


def _write_processor(folder: Path, scale: Scale, template: Template) -> None:
    """Write tokenizer and processor, each part in a file of its own: every engine's loader finds them there.

    A whole processor cannot save itself where transformers has no video processor for want of torchvision.
    """
    processor = made_processor(scale)
    text = chat_template(template)
    processor.tokenizer.chat_template = text
    processor.tokenizer.save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", scale.config.get("text_config", scale.config)["vocab_size"])
    write_atomically(folder / "chat_template.jinja", text.encode())
    named = {"processor_class": scale.processor}
    settings = {**scale.processor_config, **named}
    _write_json(folder / "preprocessor_config.json", settings)
    _write_json(folder / "processor_config.json", {**scale.processor_arguments, **named})
    if "video_processor" in type(processor).get_attributes() or hasattr(processor, "video_processor"):
        _write_json(folder / "video_preprocessor_config.json", video_settings(settings))


def _fill_vocabulary(path: Path, rows: int) -> None:
    """Give each row of the output matrix a token with a text of its own.

    A model with random weights chooses any of them, and a server sends nothing for a token that its tokenizer does not
    have. No prompt ever holds these: a merge would have to make them, and none does.
    """
    made = json.loads(path.read_text())
    vocabulary = made["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in made["added_tokens"])}
    vocabulary |= {f"{_SPACE}t{number}": number for number in range(rows) if number not in taken}
    _write_json(path, made)


def _silent_tokens(folder: Path) -> list[int]:
    """Ids of tokens that have no text by themselves: special ones, and bytes that are a part of a character."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = {number: tokenizer.decode([number]) for number in range(tokenizer.get_vocab_size())}
    return [number for number, text in texts.items() if not text or _NO_CHARACTER in text]


def _never_choose(model: Any, tokens: Sequence[int]) -> None:
    """Let a model give the logit 0 to tokens, which is never the highest: a server says when the others are chosen.

    Not where the output matrix is the embedding too.
    """
    head = model.get_output_embeddings().weight
    if head is not model.get_input_embeddings().weight:
        head[list(tokens)] = 0


def video_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a video processor, to which no video is ever sent; a loader knows its class by the model's type."""
    shared = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "processor_class")
    return {name: settings[name] for name in shared if name in settings}


def _ids(scale: Scale, token: str | None) -> int | None:
    return None if token is None else scale.tokenizer.special_tokens[token]


def _literal(text: str) -> str:
    """Write a text as a string of Jinja."""
    return json.dumps(text)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())

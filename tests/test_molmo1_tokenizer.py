"""Prompts of a known length, with real and with made-up tokenizers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from vlmeter.common.errors import UserError
from vlmeter.models.made_text import question_of
from vlmeter.models.molmo1.presets import presets
from vlmeter.models.molmo1.tokenizer import SPECIAL_TOKENS, load_tokenizer, make_tokenizer

from .support.molmo import TINY

QUESTION = "What color is the man's shirt? Größe: 5 µm naïve"


@pytest.fixture(scope="module", params=["nano", "7b-d"])
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_special_tokens_have_the_ids_of_the_original() -> None:
    tokenizer = make_tokenizer(presets()["7b-d"])
    assert [tokenizer.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [
        152064,
        152065,
        152066,
        152067,
        152068,
    ]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 151643
    assert (tokenizer.special_ids.im_start, tokenizer.special_ids.im_col) == (152064, 152067)


def test_any_text_survives_the_round_trip_within_the_vocabulary(preset: str) -> None:
    tokenizer = make_tokenizer(presets()[preset])
    ids = tokenizer.prompt_ids(QUESTION)
    assert tokenizer.decode(ids) == f" User: {QUESTION} Assistant:"
    assert max(ids) < presets()[preset].vocab_size


def test_known_words_are_single_tokens(preset: str) -> None:
    tokenizer = make_tokenizer(presets()[preset])
    assert len(tokenizer.encode(" User: what color is the man in this picture")) == 10


def test_the_tokenizer_is_made_the_same_every_time() -> None:
    first, again = (make_tokenizer(presets()["nano"]).tokenizer.to_str() for _ in range(2))
    assert first == again


@pytest.mark.parametrize("tokens", [5, 6, 8, 9, 31, 32, 100, 1000])
def test_a_question_is_made_up_to_an_exact_length(preset: str, tokens: int) -> None:
    tokenizer = make_tokenizer(presets()[preset])
    question = question_of(tokens, lambda text: len(tokenizer.prompt_ids(text)), what="a prompt")
    assert len(tokenizer.prompt_ids(question)) == tokens


def test_a_length_below_the_shortest_prompt_is_refused() -> None:
    tokenizer = make_tokenizer(presets()["nano"])
    with pytest.raises(UserError, match="text_tokens: 3 is too few for a prompt; legal from 5 on"):
        question_of(3, lambda text: len(tokenizer.prompt_ids(text)), what="a prompt")


def test_any_id_that_a_random_model_says_can_be_decoded() -> None:
    tokenizer = make_tokenizer(presets()["7b-d"])
    assert isinstance(tokenizer.decode([0, 100_000, 152_063, 152_066]), str)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size: 200"):
        make_tokenizer(replace(TINY, vocab_size=200))


def _write(folder: Path, **config: object) -> Path:
    make_tokenizer(TINY).tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_checkpoints_tokenizer_is_read_and_begins_with_its_end_of_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_write(tmp_path, eos_token={"content": "<|endoftext|>"}, bos_token=None), TINY)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 299
    assert tokenizer.prompt_ids(QUESTION) == make_tokenizer(TINY).prompt_ids(QUESTION)


def test_a_named_beginning_of_sequence_is_used(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_write(tmp_path, eos_token="<|endoftext|>", bos_token="A"), TINY)
    assert tokenizer.bos_token_id == tokenizer.encode("A")[0] != tokenizer.eos_token_id


def test_special_tokens_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="<im_start> has id 300, but the model's embedding expects it at 304"):
        load_tokenizer(_write(tmp_path, eos_token="<|endoftext|>"), replace(TINY, embedding_size=304))


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path, TINY)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path, TINY)

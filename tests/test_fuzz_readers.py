"""What vlmeter reads may hold anything: studies, records, streams of servers. It is read, or refused in one sentence.

Datasets are tried in test_field_records.py, tables and baselines in test_field_results.py, checkpoints in
test_fuzz_checkpoints.py. What once failed stays in `tests/data/field/` and is tried every time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.fuzz import anything
from tests.support.sessions import fake_study
from tests.support.studies import run_fake, study_of
from vlmeter.backends.endpoint.client import Exchange
from vlmeter.backends.endpoint.faults import ConnectionLost, Failed, Unreadable
from vlmeter.backends.endpoint.metrics import Metrics
from vlmeter.backends.endpoint.spans import token_gaps
from vlmeter.backends.endpoint.stream import Answer, read_answer
from vlmeter.common.errors import UserError
from vlmeter.records.ceilings import read_ceilings
from vlmeter.records.record import read_record
from vlmeter.records.work import read_work
from vlmeter.study.layout import cell_path
from vlmeter.study.loader import load_study, parse_study
from vlmeter.study.plan import build_plan
from vlmeter.table.build import build_table

FIELD = Path(__file__).parent / "data" / "field"

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VALUES = anything(longest_text=6, also=["ok", "a\nb", "\ud800", "1x1", "640x480", "1e3", "../x", 0.0, -1.0, 10**400])

#: What a file may hold instead of what belongs there.
BYTES = st.binary(max_size=40) | st.sampled_from(
    [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xef\xbb\xbf{}", b'{"record_version": 3}', b"1" * 5000]
)


def one_sentence(error: Exception, *names: str) -> None:
    """One sentence; of a study with several faults one for each, in a list."""
    text = str(error)
    assert "\r" not in text
    head, *faults = text.split("\n")
    assert not faults or head.endswith(f": {len(faults)} keys are wrong")
    for sentence in faults:
        assert sentence.startswith("- ")
    assert max(map(len, (head, *faults))) < 1000
    for name in names:
        assert name in text


def places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*place, key))


def changed(data: st.DataObject, whole: Any) -> Any:
    """The same with a value in it replaced, taken away, or given beside it under another name."""
    found = copy.deepcopy(whole)
    *above, last = data.draw(st.sampled_from([place for place in places(found) if place]))
    holder: Any = found
    for key in above:
        holder = holder[key]
    how = data.draw(st.sampled_from(["replaced", "gone", "misspelt"]))
    if how == "replaced" or not isinstance(holder, dict):
        holder[last] = data.draw(VALUES)
    elif how == "gone":
        del holder[last]
    else:
        holder[f"{last}s"] = holder.pop(last)
    return found


# --- studies --------------------------------------------------------------------------------------------

STUDY = fake_study(
    experiments={
        "vision_tokens": {"tilings": ["1x1", "2x2"], "text_tokens": 20},
        "output_tokens": {"output_tokens": [4, 8], "images": 2},
    },
    dataset={"source": "embedded", "images": 4},
    seed=3,
)


def loads(load: Callable[[], Any], *names: str) -> None:
    """A study is one whose cells can be listed; everything else is a sentence."""
    try:
        study = load()
    except UserError as error:
        one_sentence(error, *names)
        return
    try:
        assert build_plan(study)
    except UserError as error:
        one_sentence(error)


@FUZZ
@given(data=st.data())
def test_a_study_with_anything_in_it_is_planned_or_refused(data: st.DataObject) -> None:
    content = changed(data, STUDY)
    loads(lambda: parse_study(content, source="mine.yaml"), "mine.yaml")


@FUZZ
@given(data=st.data())
def test_a_study_file_that_was_damaged_is_planned_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    text = yaml.safe_dump(STUDY)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        put = data.draw(
            st.sampled_from(["\n", ":", "- ", "&a ", "*a", "!!int ", "{", "]", "'", "<<: ", "\t", "#", "? ", "---\n"])
        )
        text = text[:place] + put + text[place + data.draw(st.integers(0, 2)) :]
    (tmp_path / "mine.yaml").write_text(text)
    loads(lambda: load_study(tmp_path / "mine.yaml"), "mine.yaml")


@FUZZ
@given(raw=BYTES)
def test_any_bytes_for_a_study_are_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(raw)
    with pytest.raises(UserError) as refused:
        load_study(tmp_path / "mine.yaml")
    one_sentence(refused.value, "mine.yaml")


KEYS = st.sampled_from(
    ["seed", "sampling", "subjects", "study", "dataset", "experiments", "x", "", "sampling.max_samples"]
)


@FUZZ
@given(key=KEYS, value=st.text(max_size=12) | VALUES.map(lambda value: json.dumps(value)))
def test_any_value_behind_config_is_taken_or_refused(key: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    loads(lambda: load_study(tmp_path / "mine.yaml", values=[f"{key}={value}"]))


# --- records, and what is kept beside them --------------------------------------------------------------


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    study, folder = study_of(experiments={"vision_tokens": {"tilings": ["1x2"]}}), tmp_path_factory.mktemp("records")
    run_fake(study, folder)
    content: dict[str, Any] = json.loads(cell_path(folder, study.study, build_plan(study)[0]).read_text())
    return content


@FUZZ
@given(data=st.data())
def test_a_record_with_anything_in_it_is_tabulated_or_refused(
    data: st.DataObject, record: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(changed(data, record)))
    try:
        found = read_record(path)
        table = build_table([path])
    except UserError as error:
        one_sentence(error, "cell.json")
        return
    assert set(table["cell_id"]) <= {found.cell.cell_id}


@FUZZ
@given(raw=BYTES, read=st.sampled_from([read_record, read_work, read_ceilings]))
def test_any_bytes_for_a_file_of_results_are_refused(raw: bytes, read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "cell.json").write_bytes(raw)
    with pytest.raises(UserError) as refused:
        read(tmp_path / "cell.json")
    one_sentence(refused.value, "cell.json")


# --- streams of servers ---------------------------------------------------------------------------------

CHUNKS: list[dict[str, Any]] = [
    {"id": "a", "model": "m", "choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {
        "choices": [{"delta": {"content": "ab"}, "token_ids": [5, 6], "finish_reason": None}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}},
    },
    {
        "choices": [{"delta": {"content": "c"}, "token_ids": [7], "finish_reason": "length"}],
        "timings": {"predicted_n": 3},
    },
    {
        "choices": [],
        "usage": {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0, "multimodal_tokens": {"image": 4}},
        },
    },
]


def stream_of(chunks: list[Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def answered(raw: bytes, cut: int = 0) -> Answer | None:
    """An answer whose numbers can be used, or the fault of one request."""
    try:
        answer = read_answer([(raw[:cut], 1.0), (raw[cut:], 2.0)])
    except (Failed, ConnectionLost, Unreadable) as fault:
        one_sentence(fault)
        return None
    for tokens in (answer.output_tokens, *(piece.tokens for piece in answer.pieces)):
        assert tokens is None or (type(tokens) is int and tokens >= 0)
    if answer.first_token_ms is not None:
        assert all(gap_ms >= 0 for gap_ms in token_gaps(Exchange(0.0, 0.0, 0.0, answer, "kept")))
    assert answer.usage is None or type(answer.usage.prompt_tokens) is int
    assert answer.token_ids is None or all(type(number) is int for number in answer.token_ids)
    assert isinstance(answer.finish_reason, str)
    assert answer.model is None or isinstance(answer.model, str)
    return answer


def test_the_stream_that_is_changed_is_a_whole_answer() -> None:
    answer = answered(stream_of(CHUNKS))
    assert answer is not None
    assert (answer.output_tokens, answer.token_ids, answer.usage and answer.usage.image_tokens) == (3, (5, 6, 7), 4)


@settings(FUZZ, max_examples=300)
@given(data=st.data())
def test_a_stream_with_anything_in_it_is_an_answer_or_a_fault(data: st.DataObject) -> None:
    raw = stream_of(changed(data, CHUNKS))
    answered(raw, data.draw(st.integers(0, len(raw))))


@FUZZ
@given(data=st.data())
def test_a_stream_that_was_damaged_is_an_answer_or_a_fault(data: st.DataObject) -> None:
    raw = bytearray(stream_of(CHUNKS))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    answered(bytes(raw[: data.draw(st.integers(0, len(raw)))]))


@FUZZ
@given(raw=BYTES)
def test_any_bytes_for_a_stream_are_a_fault(raw: bytes) -> None:
    assert answered(raw) is None
    assert answered(b"data: " + raw + b"\n\n") is None


@FUZZ
@given(text=st.text(max_size=60) | st.sampled_from(['a{b="c"} nan', "a 1e999", "a -1 5", "a{", "a{} }{ 3"]))
def test_any_text_for_a_servers_metrics_is_read(text: str) -> None:
    assert all(isinstance(value, float) for value in Metrics.parse(text).values.values())


# --- what once failed -----------------------------------------------------------------------------------


def cases() -> Iterator[Any]:
    for case in json.loads((FIELD / "readers.json").read_text(encoding="utf-8")):
        yield pytest.param(case, id=case["what"])


@pytest.mark.parametrize("case", list(cases()))
def test_what_once_failed_is_refused_as_it_should_be(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(case["text"], encoding="utf-8", errors="surrogatepass")
    read: dict[str, Callable[[], object]] = {
        "study": lambda: load_study(path),
        "record": lambda: read_record(path),
        "stream": lambda: read_answer([(path.read_bytes(), 1.0)]),
    }
    with pytest.raises((UserError, Failed, ConnectionLost, Unreadable)) as refused:
        read[case["reader"]]()
    one_sentence(refused.value, case["says"])

"""What came when, and how many tokens it was: every way in which a stream has fooled somebody."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.support.fake_server import DONE, KEEP_ALIVE, chunk, event, plain_answer, usage, usage_alone
from vlmeter.backends.endpoint.client import Exchange
from vlmeter.backends.endpoint.faults import ConnectionLost, Failed, Unreadable
from vlmeter.backends.endpoint.spans import token_gaps
from vlmeter.backends.endpoint.stream import Answer, EventParser, Usage, read_answer


def read(parts: Iterable[bytes], *, key: str | None = None) -> Answer:
    """Read an answer whose n-th part is received at 10 n ms."""
    return read_answer(((part, 10.0 * n) for n, part in enumerate(parts)), key=key)


def gaps_ms(answer: Answer) -> list[float]:
    """Times of the tokens after the first, as samples have them."""
    return token_gaps(Exchange(0.0, 0.0, 0.0, answer, "kept"))


def test_the_first_chunk_says_who_speaks_and_is_no_token() -> None:
    answer = read([chunk(role="assistant"), chunk("a"), chunk("b", finish="length"), usage_alone(usage(7, 2)), DONE])
    assert answer.opened_ms == 0.0
    assert answer.first_token_ms == 10.0


def test_usage_and_the_end_of_the_stream_do_not_stretch_it() -> None:
    answer = read(plain_answer(3))
    assert answer.last_token_ms == 30.0
    assert answer.ended_ms == 50.0


def test_a_token_without_text_is_received_when_the_running_count_grows() -> None:
    parts = [
        chunk(role="assistant", usage=usage(7, 0)),
        chunk("", usage=usage(7, 1)),
        chunk("é", usage=usage(7, 2), finish="length"),
        usage_alone(usage(7, 2)),
        DONE,
    ]
    answer = read(parts)
    assert answer.first_token_ms == 10.0
    assert [(piece.tokens, piece.characters) for piece in answer.pieces] == [(1, 0), (1, 1)]


def test_a_token_without_text_is_received_with_its_id() -> None:
    answer = read([chunk(role="assistant"), chunk("", ids=[5]), chunk("é", ids=[6, 7], finish="length"), DONE])
    assert answer.first_token_ms == 10.0
    assert answer.token_ids == (5, 6, 7)
    assert [piece.tokens for piece in answer.pieces] == [1, 2]


def test_reasoning_and_calls_of_tools_are_tokens_too() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}
    for delta in ({"reasoning_content": "hm"}, {"reasoning": "hm"}, call):
        answer = read([chunk(role="assistant"), chunk(delta=delta), chunk("a", finish="stop"), DONE])
        assert answer.first_token_ms == 10.0, delta


def test_tokens_of_a_chunk_share_the_time_since_the_chunk_before() -> None:
    counts = [usage(7, n) for n in (0, 3, 5, 8)]
    parts = [chunk("abc" if n else "", usage=count) for n, count in enumerate(counts)]
    answer = read([*parts, chunk(finish="length", usage=usage(7, 8)), usage_alone(usage(7, 8)), DONE])
    assert [piece.tokens for piece in answer.pieces] == [3, 2, 3]
    assert gaps_ms(answer) == pytest.approx([0.0, 0.0, 5.0, 5.0, *[10.0 / 3] * 3])


def test_times_of_single_tokens_are_not_made_up_where_nobody_says_how_many_came_when() -> None:
    answer = read([chunk(role="assistant"), chunk("ab"), chunk("c"), chunk(finish="length", usage=usage(7, 5)), DONE])
    assert [piece.tokens for piece in answer.pieces] == [None, None]
    assert [arrival.tokens for arrival in answer.arrivals] == [None, None]
    assert gaps_ms(answer) == pytest.approx([10.0 / 4] * 4), "the whole is shared out over all tokens but the first"


def test_as_many_chunks_as_tokens_leave_one_for_each() -> None:
    answer = read(plain_answer(3))
    assert [(piece.tokens, piece.counted_by) for piece in answer.pieces] == [(1, "whole")] * 3
    assert [arrival.tokens for arrival in answer.arrivals] == [1, 1, 1]
    assert gaps_ms(answer) == [10.0, 10.0]


def test_all_tokens_in_one_chunk_give_a_first_token_and_no_time_for_the_others() -> None:
    """As transformers serve does: text is held back until it is whole, and usage comes with the end."""
    answer = read([chunk(role="assistant"), chunk("abcd"), chunk(finish="length", usage=usage(7, 8))])
    assert answer.first_token_ms == answer.last_token_ms == 10.0
    assert [piece.tokens for piece in answer.pieces] == [8]
    assert gaps_ms(answer) == [0.0] * 7


def test_a_total_at_the_end_is_no_running_count() -> None:
    answer = read([chunk(role="assistant"), chunk("a"), chunk("b"), chunk(finish="stop", usage=usage(7, 2)), DONE])
    assert answer.last_token_ms == 20.0
    assert not answer.usage_runs
    assert read([chunk("a", usage=usage(7, 1)), chunk(finish="stop", usage=usage(7, 1)), DONE]).usage_runs


def test_tokens_that_never_showed_were_received_nobody_knows_when() -> None:
    """A total with the end is no arrival: the tokens came at some time before."""
    answer = read([chunk(role="assistant"), chunk(finish="length", usage=usage(7, 8)), DONE])
    assert (answer.first_token_ms, answer.output_tokens) == (None, 8)


def test_a_count_that_begins_late_is_not_that_of_one_chunk() -> None:
    parts = [chunk("a"), chunk("b", usage=usage(7, 2)), chunk(finish="length", usage=usage(7, 2)), DONE]
    assert [(piece.tokens, piece.counted_by) for piece in read(parts).pieces] == [(1, "whole"), (1, "whole")]


def test_text_that_was_held_back_is_not_a_token_of_its_own() -> None:
    counts = [chunk("", usage=usage(7, n)) for n in (0, 1, 2)]
    answer = read([*counts, chunk("é", finish="length", usage=usage(7, 2)), usage_alone(usage(7, 2)), DONE])
    assert answer.last_token_ms == 20.0


def test_llama_cpp_counts_tokens_in_its_timings() -> None:
    parts = [chunk(text, timings={"predicted_n": n}) for text, n in (("a", 1), ("é", 4), ("b", 5))]
    answer = read([chunk(role="assistant"), *parts, chunk(finish="length"), usage_alone(usage(7, 5)), DONE])
    assert [piece.tokens for piece in answer.pieces] == [1, 3, 1]
    assert gaps_ms(answer) == pytest.approx([*[10.0 / 3] * 3, 10.0])


def test_sglang_sends_nothing_for_a_token_without_text_and_counts_it_with_the_next() -> None:
    """Its serving_chat.py: the role with the first output, usage in each chunk with text, the end in one of its own."""
    parts = [
        chunk(role="assistant") + chunk("é", usage=usage(7, 2)),
        chunk("b", usage=usage(7, 3)),
        chunk(finish="length", matched_stop=None),
        usage_alone(usage(7, 3, cached=0, image_tokens=4)),
        DONE,
    ]
    answer = read(parts)
    assert [piece.tokens for piece in answer.pieces] == [2, 1]
    assert (answer.first_token_ms, answer.last_token_ms) == (0.0, 10.0)
    assert gaps_ms(answer) == [0.0, 10.0]
    assert answer.usage is not None
    assert (answer.usage.cached_tokens, answer.usage.image_tokens) == (0, 4)


def test_what_a_server_says_beyond_the_protocol_is_kept() -> None:
    timings = {"prompt_ms": 12.5, "predicted_n": 1}
    answer = read(
        [chunk("a", finish="length", timings=timings), usage_alone(usage(7, 1), metrics={"queue_time_ms": 1.0})]
    )
    assert answer.extras == {"timings": timings, "metrics": {"queue_time_ms": 1.0}}


def test_usage_tells_cached_and_image_tokens_whatever_the_server_calls_them() -> None:
    assert Usage.read(usage(9, 1, cached=4, image_tokens=5)).image_tokens == 5
    of_vllm = {**usage(9, 1), "prompt_tokens_details": {"cached_tokens": 0, "multimodal_tokens": {"image": 5}}}
    assert (Usage.read(of_vllm).cached_tokens, Usage.read(of_vllm).image_tokens) == (0, 5)
    assert Usage.read(usage(9, 1)).cached_tokens is None, "saying nothing is not saying none"


def test_keep_alive_lines_are_no_events() -> None:
    answer = read([KEEP_ALIVE, KEEP_ALIVE, chunk("a", finish="length"), KEEP_ALIVE, usage_alone(usage(7, 1)), DONE])
    assert (answer.opened_ms, answer.first_token_ms) == (20.0, 20.0)


def test_events_of_one_read_share_its_stamp() -> None:
    answer = read(
        [chunk(role="assistant"), chunk("a") + chunk("b"), chunk("c", finish="length"), usage_alone(usage(7, 3))]
    )
    assert [piece.received_ms for piece in answer.pieces] == [10.0, 10.0, 20.0]


def test_tokens_that_came_with_the_first_took_no_time_of_their_own() -> None:
    """A host that is busy hands over several events at once, and a share of the tokens has taken no time."""
    first = chunk("a", ids=[1]) + chunk("b", ids=[2]) + chunk("c", ids=[3])
    answer = read(
        [chunk(role="assistant"), first, chunk("d", ids=[4], finish="length"), usage_alone(usage(7, 4)), DONE]
    )
    assert gaps_ms(answer) == [0.0, 0.0, 10.0]
    assert [arrival.tokens for arrival in answer.arrivals] == [3, 1]
    at_once = read([first + chunk("d", ids=[4], finish="length"), DONE])
    assert [arrival.tokens for arrival in at_once.arrivals] == [4]
    assert gaps_ms(at_once) == [0.0, 0.0, 0.0]


def test_an_event_is_received_with_its_last_byte() -> None:
    whole = chunk("é", finish="length")
    for cut in range(1, len(whole) - 2):
        answer = read([whole[:cut], whole[cut:], DONE])
        assert answer.first_token_ms == 10.0, cut


def test_lines_may_end_as_on_windows() -> None:
    parser = EventParser()
    found = list(parser.feed(b"data: a\r\ndata: b\r\n\r\n: hm\r\n", received_ms=1.0))
    assert [(found_event.data, found_event.received_ms) for found_event in found] == [("a\nb", 1.0)]
    assert not parser.unfinished


def test_nothing_behind_the_end_is_read() -> None:
    assert read([*plain_answer(2), event({"error": {"message": "too late"}})]).output_tokens == 2


@pytest.mark.parametrize(
    "error",
    [
        event({"error": {"message": "out of memory", "code": 500}}),
        event({"error": "out of memory"}),
        event({"object": "error", "message": "out of memory", "code": 500}),
        b'event: error\ndata: {"message": "out of memory"}\n\n',
        b'error: {"message": "out of memory"}\n\n',
    ],
)
def test_an_error_inside_a_stream_that_began_well_is_one(error: bytes) -> None:
    with pytest.raises(Failed, match=r"after 1 events with tokens: out of memory$"):
        read([chunk(role="assistant"), chunk("a"), error, DONE])


def test_an_error_never_holds_the_key() -> None:
    with pytest.raises(Failed) as caught:
        read([event({"error": {"message": "Incorrect key sk-123 given"}})], key="sk-123")
    assert "sk-123" not in str(caught.value)
    assert "[key]" in str(caught.value)


def test_half_an_event_at_the_end_is_no_end() -> None:
    with pytest.raises(ConnectionLost, match="ends within an event"):
        read([chunk("a"), chunk("b", finish="length")[:-20]])
    with pytest.raises(ConnectionLost, match="ends within an event"):
        read([chunk("a"), chunk("b", finish="length")[:-1]])


def test_an_answer_that_does_not_say_why_it_ended_has_not_ended() -> None:
    with pytest.raises(ConnectionLost, match="after 2 events with tokens, without saying"):
        read([chunk(role="assistant"), chunk("a"), chunk("b")])
    with pytest.raises(ConnectionLost, match="before the first event"):
        read([])


def test_a_stream_of_something_else_is_told() -> None:
    with pytest.raises(Unreadable, match="not JSON: <html>"):
        read([b"data: <html>\n\n"])
    with pytest.raises(Unreadable, match="no object"):
        read([b"data: 3\n\n"])
    with pytest.raises(Unreadable, match="no text"):
        read([b"data: \xff\n\n"])


def test_a_running_count_that_does_not_end_at_the_total_is_not_believed() -> None:
    parts = [chunk("a", usage=usage(7, n)) for n in (1, 2)]
    with pytest.raises(Unreadable, match="counted 5 tokens in all, and its stream holds 2"):
        read([*parts, chunk(finish="length", usage=usage(7, 2)), usage_alone(usage(7, 5)), DONE])


def test_more_chunks_with_text_than_tokens_are_not_believed() -> None:
    with pytest.raises(Unreadable, match="counted 1 tokens in all, and its stream holds 2 or more"):
        read([chunk("a"), chunk("b", finish="length"), usage_alone(usage(7, 1)), DONE])


def test_usage_without_counts_is_told() -> None:
    with pytest.raises(Unreadable, match="holds no counts"):
        read([chunk("a", finish="length"), usage_alone({"total_tokens": 3})])


def test_without_usage_the_count_is_that_of_the_stream_or_unknown() -> None:
    assert read([chunk("a", ids=[1]), chunk("b", ids=[2], finish="length"), DONE]).output_tokens == 2
    assert read([chunk("a"), chunk("b", finish="length"), DONE]).output_tokens is None

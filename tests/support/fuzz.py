"""What hypothesis puts where something else belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st


def anything(*, longest_text: int, also: Sequence[Any]) -> st.SearchStrategy[Any]:
    """Draw any value that JSON or YAML may hold, nested a little; also: values that are worth a try by themselves."""
    text = st.text(max_size=longest_text)
    return st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.integers() | st.floats() | text | st.sampled_from(also),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=2),
        max_leaves=4,
    )

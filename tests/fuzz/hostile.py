"""Values that break programs: what every test here draws from."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

#: How many times as many examples as usual.
FACTOR = int(os.environ.get("STABILIZE_FUZZ", "1"))


def cases(count: int) -> settings:
    """Settings for a test that looks at ``count`` examples, or a multiple of them."""
    return settings(
        max_examples=count * FACTOR,
        deadline=None,
        # Whole workflows take minutes to shrink; examples are small as they are.
        phases=[Phase.explicit, Phase.reuse, Phase.generate] + ([Phase.shrink] if FACTOR > 1 else []),
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


NASTY = (
    "\0", "a\0b", "\ud800", "\udfff\ud800", "a\udc80", "\\u0000", "\\ud800", "\x1b[2J\x1b]0;x\x07", "[/red]", "[bold",
    "{0}", "{x}", "{{ x }}", "${x}", "%s", "%(x)s", "'; DROP TABLE stabilize_workflows; --", "../../etc/passwd", "-", "--",
    "__class__", "__proto__", "\r\n", "\u202e", "\ufeff", "e\u0301" * 50, "x" * 5000, "", " ", "NaN", "null", "1e999",
    "!!python/object/apply:os.system [true]", "&a [*a, *a]", "<<", "*a", "\N{PILE OF POO}",
)  # fmt: skip
#: Any characters, halves of surrogate pairs and NUL among them.
TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=()), max_size=12)
NUMBERS = (
    st.integers()
    | st.sampled_from([2**31, -(2**31) - 1, 2**63, 2**64, 10**400, -1, 0])
    | st.floats(allow_nan=True, allow_infinity=True)
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
#: What json.loads can make of a text, with what it should not.
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int, kind: str = "list") -> Any:
    """Lists, or mappings, inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


#: Things that are not JSON at all, as a careless program hands them in.
OBJECTS = st.sampled_from(
    [b"bytes", {1}, object, 1j, {1: 2}, (1, 2), nested(150), nested(201), nested(201, "dict")]
)
ANYTHING = JSON | OBJECTS | st.dictionaries(TEXT, JSON | OBJECTS, max_size=2)

from __future__ import annotations

import base64
import json
import shlex
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stabilize_celery.redaction import Masker

secrets = st.text(
    st.characters(exclude_characters="*", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda s: s.strip())
texts = st.text(max_size=30)


@given(secrets, texts, texts)
def test_a_secret_never_survives(secret: str, before: str, after: str):
    masker = Masker([secret])
    text = before + secret + after
    assert secret not in masker.text(text)
    (key, [item]) = next(iter(masker.value({text: [text]}).items()))
    assert secret not in key
    assert secret not in item
    raw = text.encode("utf-8", "surrogatepass")
    assert secret.encode() not in masker.data(raw)


@given(st.lists(secrets, min_size=1, max_size=4), texts)
def test_of_several_secrets_none_survives(several: list[str], between: str):
    masked = Masker(several).text(between.join(several))
    assert not any(secret in masked for secret in several)


@given(secrets, texts, st.data())
def test_truncation_does_not_leave_the_beginning_of_a_secret(secret: str, before: str, data: st.DataObject):
    assume(secret == secret.strip() and "\n" not in secret and not any(c in before for c in secret))
    kept = data.draw(st.integers(1, len(secret)))
    cut = before + secret[:kept]
    masked = Masker([secret]).text(cut, truncated=True)
    assert masked == before + "***"
    raw = Masker([secret]).data(cut.encode("utf-8", "surrogatepass"), truncated=True)
    assert raw.endswith(b"***")


@given(texts)
def test_without_secrets_nothing_changes(text: str):
    assert Masker([]).text(text, truncated=True) == text
    assert Masker(["", "  ", None, {}, False]).text(text) == text


@pytest.mark.parametrize(
    "form",
    [
        lambda s: s,
        lambda s: json.dumps({"k": s}),
        lambda s: repr([s]),
        shlex.quote,
        quote,
        lambda s: quote(s, safe=""),
        lambda s: base64.b64encode(s.encode()).decode(),
        lambda s: s.splitlines()[0],
    ],
)
def test_forms_in_which_programs_repeat_a_secret(form):
    secret = 'it\'s "secret"/&\\ é\nsecond line'
    text = form(secret)
    assert "***" in Masker([secret]).text(f"<{text}>")


def test_a_structure_stands_for_its_leaves():
    masker = Masker([{"user": "alice", "pin": 4321, "ok": True, "none": None}])
    assert masker.text("alice 4321 True None user") == "*** *** True None user"
    assert masker.value({"pin": 4321, "x": True}) == {"pin": "***", "x": True}


def test_the_longer_secret_is_replaced_as_a_whole():
    assert Masker(["abc", "abcdef"]).text("abcdef abc") == "*** ***"

"""Secrets do not reach people."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabilize_celery.redaction import DEFAULT_KEYS, HIDDEN, redact, redact_text, secrets_in

SECRET = "hunter2-tr0ub4dor"


@pytest.mark.parametrize(
    "key",
    [
        "password", "PASSWORD", "db_password", "dbPassword", "dbpassword", "password_hash", "api_key", "apiKey",
        "API-KEY", "X-API-Key", "apikey", "stripe_api_key_id", "Authorization", "authToken", "access.token", "secrets",
        "clientSecret", "set-cookie", "credentials", "AWS_SECRET_ACCESS_KEY",
    ],
)  # fmt: skip
def test_keys_of_secrets_are_known_however_they_are_spelled(key: str) -> None:
    assert redact({key: "x"}) == {key: HIDDEN}
    assert redact({key: SECRET}) == {key: HIDDEN}


@pytest.mark.parametrize(
    "key", ["max_tokens", "tokenizer", "secretary", "author", "key", "keyboard", "path", "", "é"]
)
def test_other_keys_are_left_alone(key: str) -> None:
    assert redact({key: "value"}) == {key: "value"}


def test_only_what_is_configured_is_hidden() -> None:
    assert redact({"iban": "DE1", "password": "x"}, ["iban"]) == {"iban": HIDDEN, "password": "x"}
    assert redact({"password": "x"}, []) == {"password": "x"}


def test_everything_below_a_secret_key_is_hidden_and_nothing_is_changed() -> None:
    value = {"a": [{"token": {"deep": [SECRET]}}], "n": 1, "token": 5, "password": None, "has_secret": True}
    before = json.dumps(value)
    assert redact(value) == {
        "a": [{"token": HIDDEN}], "n": 1, "token": HIDDEN, "password": None, "has_secret": True,
    }  # fmt: skip
    assert json.dumps(value) == before
    assert list(secrets_in(value)) == [{"deep": [SECRET]}, 5]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"password={SECRET}", "password=***"),
        (f"password = {SECRET}, next=1", "password = ***, next=1"),
        (f'{{"api_key": "{SECRET}", "n": 1}}', '{"api_key": ***, "n": 1}'),
        (f"{{'token': '{SECRET}'}}", "{'token': ***}"),
        (f"{{'token': b'{SECRET}'}}", "{'token': ***}"),
        (f'"{{\\"token\\": \\"{SECRET}\\", \\"n\\": 1}}"', '"{\\"token\\": ***, \\"n\\": 1}"'),
        (f'{{"password": "a\\"{SECRET}"}}', '{"password": ***}'),
        (f'{{"password": "{SECRET}', '{"password": ***'),
        (f"{{'secrets': {{'a': ['{SECRET}', ')']}}, 'n': 1}}", "{'secrets': ***, 'n': 1}"),
        (f"Authorization: Bearer {SECRET}\nHost: a", "Authorization: ***\nHost: a"),
        (f"sent Bearer {SECRET} to a", "sent Bearer *** to a"),
        (f"deploy --db-password {SECRET} --to here", "deploy --db-password *** --to here"),
        (f"postgresql+psycopg://shop:{SECRET}@db:5432/shop", "postgresql+psycopg://shop:***@db:5432/shop"),
        (f"amqp://guest:{SECRET}@/x@broker//", "amqp://guest:***@broker//"),
        (f"redis://:{SECRET}@cache", "redis://:***@cache"),
        (f"GET /?user=kim&api_key={SECRET}&n=1", "GET /?user=kim&api_key=***&n=1"),
        ("http://localhost:8000/path", "http://localhost:8000/path"),
        ("the password is missing", "the password is missing"),
        ("max_tokens=5", "max_tokens=5"),
    ],
)
def test_texts_are_shown_without_their_secrets(text: str, shown: str) -> None:
    assert redact_text(text) == shown
    assert redact({"log": [text]}) == {"log": [shown]}


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "://a:" * 60_000,
        "token=" * 50_000,
        "token='\\" * 40_000,
        "token=[" * 40_000,
        '{"token": "' * 30_000,
    ],
)
def test_long_texts_take_no_long_time(text: str) -> None:
    redact_text(text)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.sampled_from(DEFAULT_KEYS), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(json_values)
def test_any_value_keeps_its_shape_and_shows_the_same_when_shown_again(value: Any) -> None:
    shown = redact(value)
    assert redact(shown) == shown
    json.dumps(shown)
    if isinstance(value, dict):
        assert shown.keys() == value.keys()


@given(st.sampled_from(DEFAULT_KEYS), st.text(min_size=1))
def test_a_secret_is_hidden_in_every_rendering_of_its_mapping(key: str, tail: str) -> None:
    value = {"before": "x", key: SECRET + tail, "after": "y"}
    for text in (
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        repr(value),
        json.dumps(json.dumps(value)),
    ):
        assert SECRET not in redact_text(text)
        assert "before" in redact_text(text)
        assert "after" in redact_text(text)

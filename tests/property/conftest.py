"""`pytest tests/property --hypothesis-profile=thorough` looks at twenty times as many examples."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("thorough", max_examples=20 * settings.get_profile("default").max_examples)

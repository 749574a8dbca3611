"""The engine that a test is about: the user's own, of which types, builders and settings are taken over."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import ConfigurationError

#: Settings that are about the place an engine lives in.
_OF_PLACE = {"database_url", "database_pool_size", "database_prepare", "database_listen_url", "imports"}


def settings_of(stabilize: Stabilize | None) -> dict[str, Any]:
    """The settings of an engine that make sense elsewhere too; reading them imports what ``stabilize_imports`` names.

    Raises:
        ConfigurationError: its app is configured wrongly.
    """
    if stabilize is None or (stabilize.app is None and stabilize._settings is None):
        return {}
    return stabilize.settings.model_dump(exclude=_OF_PLACE)


def find_engine(source: Any) -> Stabilize | None:
    """The engine that is meant.

    Args:
        source: an engine, a Celery app that has one, ``None`` or an empty text for none at all, or where to find it:
            ``"shop"`` (the engine in a module) or ``"shop:app"`` (an app or an engine by its name there).

    Raises:
        ConfigurationError: there is none.
    """
    if source is None or source == "" or isinstance(source, Stabilize):
        return source or None
    if isinstance(source, str):
        return _engine_at(source)
    from celery import Celery

    if isinstance(source, Celery):
        from stabilize_celery.delivery.install import engine_of

        return engine_of(source)
    raise ConfigurationError(
        f"stabilize_app must be a Celery app, a Stabilize, or text such as 'shop:app', not {source!r}"
    )


def _engine_at(place: str) -> Stabilize | None:
    name, _, attribute = place.partition(":")
    module = import_module(name)
    if attribute:
        if not hasattr(module, attribute):
            raise ConfigurationError(f"stabilize_app is {place!r}, but module {name} has no {attribute!r}")
        found = getattr(module, attribute)
        if isinstance(found, str) or found is None:
            raise ConfigurationError(f"stabilize_app is {place!r}, which is {found!r} and no app")
        return find_engine(found)
    engines = {id(value): value for value in vars(module).values() if isinstance(value, Stabilize)}
    if len(engines) != 1:
        raise ConfigurationError(
            f"stabilize_app is {place!r}, a module with {len(engines)} Stabilize objects;"
            f" name the one that is meant, as in {name}:stabilize"
        )
    return next(iter(engines.values()))

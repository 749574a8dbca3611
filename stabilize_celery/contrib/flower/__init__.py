"""A *Workflows* tab in Flower: ``celery -A app stabilize flower``, or :func:`install` in ``flowerconfig.py``.

Flower runs its configuration file before it makes its application, and takes its routes and its templates from two
lists of the module ``flower.urls``; ours are added to these.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent


def install() -> None:
    """Let the Flower of this process show workflows; doing it twice changes nothing.

    Call it before Flower starts: in ``flowerconfig.py``, or let ``celery -A app stabilize flower`` do it.

    Raises:
        ConfigurationError: Flower is not installed.
    """
    try:
        from flower import urls
    except ImportError as error:
        from stabilize_celery.errors import ConfigurationError

        raise ConfigurationError(
            "Flower is not installed; run: pip install 'stabilize-celery[flower]'"
        ) from error
    from stabilize_celery.contrib.flower.routes import ROUTES
    from stabilize_celery.contrib.flower.views import FlowerLoader, define_options
    from stabilize_celery.plugins import plugins

    if any(route in urls.handlers for route in ROUTES):
        return
    define_options()
    for plugin in plugins():
        plugin.show()
    # The last route of Flower catches everything.
    urls.handlers[-1:-1] = ROUTES
    urls.settings["template_loader"] = FlowerLoader([HERE / "pages", Path(urls.settings["template_path"])])

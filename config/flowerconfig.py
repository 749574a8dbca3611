"""For those who start Flower themselves: `celery -A app flower --conf=config/flowerconfig.py`.

`celery -A app stabilize flower` does the same without a file. Flower's own options may be set here as well.
"""

from __future__ import annotations

from stabilize_celery.contrib.flower import install

install()

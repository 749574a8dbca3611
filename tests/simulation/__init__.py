"""The simulator: the real engine with a simulated broker, a simulated clock and simulated deaths, under a seed.

``plan`` what happens in one history; ``generate`` random ones, ``scripted`` the task type of their workflows
``faults`` what can go wrong, and where
``simulated`` engine, ``broker`` and ``world``: where it happens; ``watch`` what is noted as it happens
``invariants`` what must hold
``scenario`` plays random workflows; ``run`` many of them
``telling`` and ``story`` describe it; ``shrink`` makes it shorter
"""

from __future__ import annotations

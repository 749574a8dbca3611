"""The simulator: the real engine with a simulated broker, a simulated clock and simulated deaths, under a seed.

``plan`` what happens in one history; ``generate`` random ones; ``scripted`` the task type of random workflows;
``faults`` what can go wrong, and where; ``broker`` and ``world`` where it happens; ``watch`` what is noted as it
happens; ``invariants`` what must hold; ``story`` telling it; ``shrink`` making it shorter.
"""

from __future__ import annotations

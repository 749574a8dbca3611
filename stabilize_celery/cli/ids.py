"""Which workflow somebody means: its id, or the end or beginning of it."""

from __future__ import annotations

from difflib import get_close_matches

from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import WorkflowNotFoundError
from stabilize_celery.persistence.store import ids_matching, newest_ids
from stabilize_celery.run import WorkflowRun

ID_LENGTH = 26
#: Shorter than that, a part of an id means too many workflows.
SHORTEST_PART = 6


def find_run(engine: Stabilize, given: str) -> WorkflowRun:
    """The run of an id, or of a part of one that no other has.

    Ids of the same time begin alike, so the end is what tells them apart.

    Raises:
        WorkflowNotFoundError: there is none, or more than one.
    """
    part = given.strip().upper()
    if len(part) == ID_LENGTH and engine.store.exists(part):
        return engine.get(part)
    if SHORTEST_PART <= len(part) < ID_LENGTH and part.isalnum():
        found = ids_matching(engine.store, part, 6)
        if len(found) == 1:
            return engine.get(found[0])
        if found:
            listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise WorkflowNotFoundError(f"{given} may be any of {listed}; write more of it")
    raise WorkflowNotFoundError(_unknown(engine, given, part))


def _unknown(engine: Stabilize, given: str, part: str) -> str:
    message = f"there is no workflow {given} in {engine.store.database.name}"
    if len(part) < SHORTEST_PART:
        return f"{message}; write an id, or {SHORTEST_PART} or more characters of its end"
    # What is random in an id is its end; the beginning would make every id look alike.
    ends = {known[-len(part[-16:]) :]: known for known in newest_ids(engine.store, 2000)}
    close = get_close_matches(part[-16:], ends, n=1, cutoff=0.75)
    return (
        f"{message}, did you mean {ends[close[0]]}?" if close else f"{message}; `list` shows those there are"
    )

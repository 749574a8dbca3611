"""A witness of every slot that is given out: a trigger that counts the holders in the transaction that gives one."""

from __future__ import annotations

from sqlalchemy import text

from stabilize_celery import Stabilize

_WITNESS = """
CREATE TABLE chaos_grants (config text NOT NULL, holders integer NOT NULL, most integer NOT NULL);

CREATE FUNCTION chaos_grant() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos_grants
  SELECT NEW.pipeline_config_id, count(*), NEW.max_concurrent_executions
  FROM stabilize_workflows WHERE pipeline_config_id = NEW.pipeline_config_id AND holds_slot;
  RETURN NULL;
END $$;

CREATE TRIGGER chaos_grant AFTER UPDATE OF holds_slot ON stabilize_workflows
FOR EACH ROW WHEN (NEW.holds_slot AND NOT OLD.holds_slot) EXECUTE FUNCTION chaos_grant();
"""


def watch(stabilize: Stabilize) -> None:
    """Count from now on."""
    with stabilize.store.database.begin() as connection:
        for statement in _WITNESS.split("\n\n"):
            connection.execute(text(statement))


def granted(stabilize: Stabilize) -> tuple[int, int, int]:
    """How many slots were given out, how many were held at most, and how often that was too many."""
    with stabilize.store.database.begin() as connection:
        row = connection.execute(
            text(
                "SELECT count(*), coalesce(max(holders), 0), count(*) FILTER (WHERE holders > most) FROM chaos_grants"
            )
        ).one()
        return int(row[0]), int(row[1]), int(row[2])

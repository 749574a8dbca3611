"""The steps from one version of the tables to the next, in Alembic's form; see ``persistence/migrate.py``."""

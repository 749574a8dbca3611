"""PgBouncer in transaction mode before the tests' PostgreSQL: each transaction may get another session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row
from sqlalchemy.engine import make_url

from tests.processes import ChildProcess, free_port, temporary_folder, wait_ready
from tests.services import ServicesMissing, _unprivileged_user

CONFIGURATION = """\
[databases]
* = host={server.host} port={server.port} user={server.username}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = stabilize
pool_mode = transaction
default_pool_size = {sessions}
ignore_startup_parameters = extra_float_digits
"""


class Pooler:
    """A running PgBouncer."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url_of(self, url: str) -> str:
        """The URL of a database of the server behind it, through it."""
        return make_url(url).set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)

    def show(self, what: str) -> list[dict[str, Any]]:
        """What its console says: ``POOLS``, ``SERVERS``, ``CLIENTS``, ``STATS``."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="stabilize", dbname="pgbouncer", autocommit=True
        ) as console:
            # The console knows only the simple protocol.
            cursor = psycopg.ClientCursor(console, row_factory=dict_row)
            return list(cursor.execute(f"SHOW {what}"))  # type: ignore[arg-type]


@contextmanager
def pooler_running(server_url: str, *, sessions: int = 20) -> Iterator[Pooler]:
    """PgBouncer while the block runs.

    Args:
        server_url: of any database of the server.
        sessions: the most it keeps with the server for each database.
    """
    binary = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        raise ServicesMissing("the tests need PgBouncer: `apt-get install pgbouncer`")
    user = _unprivileged_user() if os.geteuid() == 0 else None
    folder = temporary_folder("pgbouncer", user)
    port = free_port()
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(CONFIGURATION.format(server=make_url(server_url), port=port, sessions=sessions))
    configuration.chmod(0o644)
    process = ChildProcess([binary, str(configuration)], log=folder / "pgbouncer.log", cwd=folder, user=user)
    process.start()
    try:
        wait_ready(process, lambda: "process up" in process.output(), 30)
        yield Pooler(port)
    finally:
        process.kill_tree()
        shutil.rmtree(folder, ignore_errors=True)

"""The faults: each makes something go wrong, and returns only when it has really happened."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import psutil
from amqp.exceptions import NotFound
from sqlalchemy import make_url

from tests.processes import ProcessFailed, wait_until
from tests.worker import WorkerProcess

if TYPE_CHECKING:
    from tests.chaos.driver import Deployment

#: For a fault to have happened, and for what it stopped to be started again.
_PATIENCE = 60.0
#: Until a worker that is to end is killed, as whatever runs it would do.
_STOP_TIMEOUT = 20.0
BROKER_KILLED, DATABASE_KILLED = "broker killed", "database killed"


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    name: str
    inject: Callable[[Deployment, random.Random], None]


def _is_dead(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _is_stopped(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    return True


def _is_closed(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return True
    return False


def _family(worker: WorkerProcess) -> list[psutil.Process]:
    leader = psutil.Process(worker.pid)
    return [leader, *leader.children(recursive=True)]


# ------------------------------------------------------------------------------------------------- workers


def kill_worker(chaos: Deployment, rng: random.Random) -> None:
    with chaos.crew.one_to_end(rng) as worker:
        family = _family(worker)
        worker.kill()
        wait_until(lambda: all(map(_is_dead, family)), _PATIENCE, "end of a worker")


def shut_down_worker(chaos: Deployment, rng: random.Random) -> None:
    with chaos.crew.one_to_end(rng) as worker:
        try:
            worker.stop(_STOP_TIMEOUT)
        except ProcessFailed:
            # A worker with threads that has lost a connection under running tasks waits for them for ever (Celery).
            chaos.crew.stubborn += 1
            worker.kill()


def kill_pool_process(chaos: Deployment, rng: random.Random) -> None:
    with chaos.crew.one(
        rng, lambda worker: "prefork" in worker.command and worker.pool_pids() != []
    ) as worker:
        victim = psutil.Process(rng.choice(worker.pool_pids()))
        victim.kill()
        wait_until(lambda: _is_dead(victim), _PATIENCE, "end of a pool process")


def freeze_worker(chaos: Deployment, rng: random.Random) -> None:
    """All processes of a worker stand still until its leases have run out; then they go on, not knowing."""
    with chaos.crew.one(rng) as worker:
        family = _family(worker)
        os.killpg(worker.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: all(map(_is_stopped, family)), _PATIENCE, "stop of a worker")
            time.sleep(chaos.stabilize.settings.lease * 1.5)
        finally:
            os.killpg(worker.pid, signal.SIGCONT)
        wait_until(lambda: not any(map(_is_stopped, family[:1])), _PATIENCE, "worker to go on")


# -------------------------------------------------------------------------------------------------- broker


def _broker_is_closed(chaos: Deployment) -> None:
    rabbit = chaos.rabbit
    wait_until(lambda: _is_closed(rabbit.host, rabbit.port), _PATIENCE, "broker's port to close")


def restart_broker(chaos: Deployment, rng: random.Random) -> None:
    chaos.rabbit.stop()
    _broker_is_closed(chaos)
    chaos.rabbit.start()


def kill_broker(chaos: Deployment, rng: random.Random) -> None:
    chaos.rabbit.kill()
    _broker_is_closed(chaos)
    chaos.rabbit.start()


def delete_queues(chaos: Deployment, rng: random.Random) -> None:
    wait_until(partial(_delete, chaos), _PATIENCE, "queues to delete", pause=0.2)


def _delete(chaos: Deployment) -> bool:
    """Delete all queues at once.

    One after the other, a worker may be subscribing again because of the first when the second goes, and then Celery
    may go on without it: docs/explanation/guarantees.md.
    """
    queues = chaos.stabilize.settings.queues()
    with contextlib.suppress(NotFound), chaos.rabbit.channel(chaos.broker) as channel:
        for queue in queues:
            channel.queue_declare(queue, passive=True)
        for queue in queues[:-1]:
            channel.queue_delete(queue, nowait=True)
        # The broker's answer says that it is gone; a relay or worker may have made it again by then.
        channel.queue_delete(queues[-1])
        return True
    return False


def wipe_broker(chaos: Deployment, rng: random.Random) -> None:
    with chaos.rabbit.channel(chaos.broker) as channel:
        channel.queue_declare("marker", durable=True, auto_delete=False)
    chaos.rabbit.kill()
    _broker_is_closed(chaos)
    chaos.rabbit.wipe_data()
    assert "marker" not in chaos.rabbit.queue_names(chaos.broker), "the broker has kept its data"


def cut_broker_connections(chaos: Deployment, rng: random.Random) -> None:
    # After a fault before it they may all still be on their way back.
    wait_until(
        lambda: chaos.rabbit.drop_connections(chaos.broker), _PATIENCE, "connections to cut", pause=0.2
    )


# ------------------------------------------------------------------------------------------------ database


def _database_is_closed(chaos: Deployment) -> None:
    url = make_url(chaos.database)
    wait_until(lambda: _is_closed(str(url.host), int(url.port or 0)), _PATIENCE, "database's port to close")


def restart_database(chaos: Deployment, rng: random.Random) -> None:
    chaos.postgres.stop()
    _database_is_closed(chaos)
    chaos.postgres.start()


def kill_database(chaos: Deployment, rng: random.Random) -> None:
    chaos.postgres.kill()
    _database_is_closed(chaos)
    chaos.postgres.start()


def cut_database_connections(chaos: Deployment, rng: random.Random) -> None:
    name = make_url(chaos.database).database
    assert name is not None
    wait_until(lambda: chaos.postgres.disconnect_all(name), _PATIENCE, "connections to cut", pause=0.2)


#: Every kind; each is injected once in a round.
ALL = (
    Fault("worker killed", kill_worker),
    Fault("pool process killed", kill_pool_process),
    Fault("worker frozen beyond its lease", freeze_worker),
    Fault("worker shut down", shut_down_worker),
    Fault("broker restarted", restart_broker),
    Fault(BROKER_KILLED, kill_broker),
    Fault("broker's queues deleted", delete_queues),
    Fault("broker's data wiped", wipe_broker),
    Fault("broker's connections cut", cut_broker_connections),
    Fault("database restarted", restart_database),
    Fault(DATABASE_KILLED, kill_database),
    Fault("database connections cut", cut_database_connections),
)

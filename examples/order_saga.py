"""An order over Celery tasks that exist already: reserve, charge, ship; what was done is undone when a later step fails.

The tasks know nothing of workflows.  ``on_error`` names what undoes them; each of these is a stage of its own, run with
the same guarantees as the others.

    cd examples
    celery -A order_saga stabilize migrate
    celery -A order_saga worker
    python order_saga.py

It needs RabbitMQ and PostgreSQL; CELERY_BROKER_URL and STABILIZE_DATABASE_URL say where.
"""

from __future__ import annotations

import os

from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowFailedError

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//"))
app.conf.stabilize_database_url = os.environ.get(
    "STABILIZE_DATABASE_URL", "postgresql+psycopg://localhost/shop"
)
stabilize = Stabilize(app)


@app.task(name="stock.reserve")
def reserve(item: str) -> dict[str, str]:
    return {"reservation": f"reservation of {item}"}


@app.task(name="stock.release")
def release(reservation: str) -> str:
    return f"released: {reservation}"


@app.task(name="payments.charge", autoretry_for=(ConnectionError,), retry_backoff=True)
def charge(order_id: int, amount: int) -> dict[str, str]:
    return {"charge_id": f"ch_{order_id}"}


@app.task(name="payments.refund")
def refund(charge_id: str) -> str:
    return f"refunded: {charge_id}"


@app.task(name="parcels.ship")
def ship(reservation: str, country: str) -> dict[str, str]:
    if country == "Atlantis":
        raise ValueError("nobody delivers to Atlantis")
    return {"parcel": f"parcel for the {reservation}, to {country}"}


def order(order_id: int, item: str, country: str) -> Workflow:
    undo_reserve = release.si("{{ reserve.reservation }}")
    undo_charge = refund.si("{{ charge.charge_id }}")
    return Workflow.create(
        application="shop",
        name="order",
        stages=[
            StageExecution.celery("reserve", reserve.s(item)),
            StageExecution.celery(
                "charge", charge.s(order_id, amount=7).on_error(undo_reserve), requires={"reserve"}
            ),
            StageExecution.celery(
                "ship",
                ship.s("{{ reserve.reservation }}", country).on_error(undo_charge).on_error(undo_reserve),
                requires={"charge"},
            ),
        ],
    )


def main() -> None:
    print(stabilize.start(order(1, "lamp", "Norway")).get(timeout=60)["parcel"])
    lost = stabilize.start(order(2, "lamp", "Atlantis"))
    try:
        lost.get(timeout=60)
    except WorkflowFailedError as error:
        print(error.errors["ship"])
    for stage in lost.workflow().stage_by_ref_id("ship").synthetic_stages():
        print(stage.outputs["result"])


if __name__ == "__main__":
    main()

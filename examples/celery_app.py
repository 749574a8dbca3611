"""An order on a Celery app: charge, then ship and send a receipt side by side.

Make the tables, start a worker in one terminal and an order in another:

    cd examples
    celery -A celery_app stabilize migrate
    celery -A celery_app worker
    python celery_app.py

It needs RabbitMQ and PostgreSQL; CELERY_BROKER_URL and STABILIZE_DATABASE_URL say where.
"""

from __future__ import annotations

import os

from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Task, TaskResult, Workflow

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//"))
app.conf.stabilize_database_url = os.environ.get(
    "STABILIZE_DATABASE_URL", "postgresql+psycopg://localhost/shop"
)
stabilize = Stabilize(app)


@stabilize.task("charge")
def charge(order_id: int) -> dict[str, str]:
    return {"charge_id": f"ch_{order_id}"}


@stabilize.task("ship")
class Ship(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(outputs={"parcel": f"parcel for {stage.context['charge_id']}"})

    def on_cancel(self, stage: StageExecution) -> None:
        print(f"call back the parcel of {stage.context['charge_id']}")


def order(order_id: int) -> Workflow:
    return Workflow.create(
        application="shop",
        name="order",
        stages=[
            StageExecution.single("charge", "charge", {"order_id": order_id}),
            StageExecution.single("ship", "ship", requires={"charge"}),
            StageExecution.single(
                "receipt", "shell", {"command": "echo receipt for {charge_id}"}, requires={"charge"}
            ),
        ],
    )


def main() -> None:
    run = stabilize.start(order(42), dedup_key="order-42")
    print(run.id, run.get(timeout=60)["parcel"])


if __name__ == "__main__":
    main()

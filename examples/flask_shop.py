"""A Flask shop: an order and its workflow are one transaction, and the tasks of the workflow run in the app's context.

    cd examples
    celery -A flask_shop stabilize migrate
    celery -A flask_shop worker
    flask --app flask_shop run          # POST item=lamp to /orders, then look at /orders/1

It needs RabbitMQ and PostgreSQL; CELERY_BROKER_URL and STABILIZE_DATABASE_URL say where.
"""

from __future__ import annotations

import os

from celery import Celery, Task
from flask import Flask, abort, current_app, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from stabilize_celery import Stabilize, StageExecution, Workflow


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
stabilize = Stabilize()


class Order(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    workflow_id: Mapped[str | None]
    charge_id: Mapped[str | None]


def create_app() -> Flask:
    app = Flask(__name__)
    url = os.environ.get("STABILIZE_DATABASE_URL", "postgresql+psycopg://localhost/shop")
    app.config.from_mapping(
        CURRENCY="NOK",
        SQLALCHEMY_DATABASE_URI=url,
        CELERY={
            "broker_url": os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//"),
            "stabilize_database_url": url,
        },
    )
    db.init_app(app)
    celery_init_app(app)
    with app.app_context():
        db.create_all()
        db.engine.dispose()  # the processes of a worker must not share this connection
    app.post("/orders")(place_order)
    app.get("/orders/<int:order_id>")(show_order)
    return app


def celery_init_app(app: Flask) -> Celery:
    """As the documentation of Flask has it, with one more line."""

    class FlaskTask(Task):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    stabilize.init_app(celery_app)
    app.extensions["celery"] = celery_app
    return celery_app


@stabilize.task("charge")
def charge(order_id: int):
    order = db.get_or_404(Order, order_id)
    order.charge_id = f"ch_{order_id} in {current_app.config['CURRENCY']}"
    db.session.commit()
    return {"charge_id": order.charge_id}


def place_order():
    if not request.form.get("item"):
        abort(400)
    order = Order(item=request.form["item"])
    db.session.add(order)
    db.session.flush()
    workflow = Workflow.create(
        "shop", "order", [StageExecution.single("charge", "charge", {"order_id": order.id})]
    )
    order.workflow_id = stabilize.start(workflow, connection=db.session).id
    if order.item == "unicorn":
        db.session.rollback()  # neither the order nor its workflow ever existed
        abort(409, "there are no unicorns")
    db.session.commit()
    return {"order": order.id, "workflow": order.workflow_id}, 201


def show_order(order_id: int):
    order = db.get_or_404(Order, order_id)
    return {
        "item": order.item,
        "charge_id": order.charge_id,
        "status": stabilize.get(order.workflow_id).status.name,
    }


flask_app = create_app()
app = flask_app.extensions["celery"]  # what `celery -A flask_shop` looks for

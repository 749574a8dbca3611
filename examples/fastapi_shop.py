"""A FastAPI shop: an order and its workflow are one transaction, with SQLAlchemy's sessions or asynchronous ones.

    cd examples
    celery -A fastapi_shop stabilize migrate
    celery -A fastapi_shop worker
    uvicorn fastapi_shop:api            # POST {"item": "lamp"} to /orders, then look at /orders/1

It needs RabbitMQ and PostgreSQL; CELERY_BROKER_URL and STABILIZE_DATABASE_URL say where.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from celery import Celery
from fastapi import Depends, FastAPI, HTTPException
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.errors import WorkflowNotFoundError

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//"))
app.conf.stabilize_database_url = os.environ.get(
    "STABILIZE_DATABASE_URL", "postgresql+psycopg://localhost/shop"
)
stabilize = Stabilize(app)
engine = create_engine(app.conf.stabilize_database_url)
async_engine = create_async_engine(app.conf.stabilize_database_url)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    workflow_id: Mapped[str | None]


class NewOrder(BaseModel):
    item: str


@stabilize.task("charge")
def charge(order_id: int):
    return {"charge_id": f"ch_{order_id}"}


def order_workflow(order: Order) -> Workflow:
    return Workflow.create(
        "shop", "order", [StageExecution.single("charge", "charge", {"order_id": order.id})]
    )


def session() -> Iterator[Session]:
    with Session(engine) as opened, opened.begin():
        yield opened


async def async_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(async_engine) as opened, opened.begin():
        yield opened


@asynccontextmanager
async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
    Base.metadata.create_all(engine)
    yield
    await async_engine.dispose()
    engine.dispose()
    stabilize.close()


api = FastAPI(lifespan=lifespan)


def sell(opened: Session, item: str) -> dict[str, object]:
    order = Order(item=item)
    opened.add(order)
    opened.flush()
    order.workflow_id = stabilize.start(order_workflow(order), connection=opened).id
    if item == "unicorn":
        raise HTTPException(409, "there are no unicorns")  # which rolls the session back
    return {"order": order.id, "workflow": order.workflow_id}


@api.post("/orders", status_code=201)
def place_order(new: NewOrder, opened: Annotated[Session, Depends(session, scope="function")]):
    """FastAPI runs this in a thread: nothing else waits for it."""
    return sell(opened, new.item)


@api.post("/async-orders", status_code=201)
async def place_order_asynchronously(
    new: NewOrder, opened: Annotated[AsyncSession, Depends(async_session, scope="function")]
):
    return await opened.run_sync(sell, new.item)


@api.post("/greetings/{name}", status_code=201)
async def greet(name: str):
    """A transaction of its own, in a thread, because `start` waits for the database."""
    workflow = Workflow.create(
        "shop", "greeting", [StageExecution.single("greet", "shell", {"command": "echo hello", "name": name})]
    )
    run = await run_in_threadpool(stabilize.start, workflow)
    return {"workflow": run.id}


@api.get("/workflows/{workflow_id}")
def show_workflow(workflow_id: str):
    try:
        return {"status": stabilize.get(workflow_id).status.name}
    except WorkflowNotFoundError:
        raise HTTPException(404) from None

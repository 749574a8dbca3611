"""A canvas as people write it, made durable: killed workers and a wiped broker do not stop it, and it needs no results.

    cd examples
    celery -A durable_canvas stabilize migrate
    celery -A durable_canvas worker
    python durable_canvas.py

It needs RabbitMQ and PostgreSQL; CELERY_BROKER_URL and STABILIZE_DATABASE_URL say where.
"""

from __future__ import annotations

import os

from celery import Celery, chain, group

from stabilize_celery import Stabilize, Workflow

app = Celery("books", broker=os.environ.get("CELERY_BROKER_URL", "amqp://guest:guest@localhost:5672//"))
app.conf.stabilize_database_url = os.environ.get(
    "STABILIZE_DATABASE_URL", "postgresql+psycopg://localhost/books"
)
stabilize = Stabilize(app)


@app.task(name="books.pages")
def pages(book: str) -> list[str]:
    return [f"{book}, page {number}, of many words" for number in (1, 2, 3)]


@app.task(name="books.words")
def words(texts: list[str], letter: str) -> int:
    return sum(word.startswith(letter) for text in texts for word in text.split())


@app.task(name="books.add")
def add(counts: list[int]) -> int:
    return sum(counts)


@app.task(name="books.report")
def report(total: int, book: str) -> str:
    return f"{book}: {total}"


def counting(book: str):
    return chain(pages.s(book), group(words.s("p"), words.s("w")), add.s(), report.s(book=book))


def main() -> None:
    # Instead of counting("Ulysses").apply_async():
    run = stabilize.start(Workflow.from_canvas(counting("Ulysses"), application="books", name="count words"))
    print(run.get(timeout=60)["result"])
    for stage in run.workflow().stages:
        print(stage.ref_id, stage.status, stage.outputs["result"])


if __name__ == "__main__":
    main()

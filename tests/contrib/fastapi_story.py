"""What customers do in the FastAPI shop; run by its test in a process of its own."""

from __future__ import annotations

import json
import time

from fastapi.testclient import TestClient
from fastapi_shop import Order, Session, api, engine, stabilize

with TestClient(api) as client:
    told: dict[str, object] = {}
    started = []
    for path in ("/orders", "/async-orders"):
        sold = client.post(path, json={"item": "lamp"})
        refused = client.post(path, json={"item": "unicorn"})
        started.append(sold.json()["workflow"])
        told[path] = [sold.status_code, refused.status_code]
    started.append(client.post("/greetings/kim").json()["workflow"])
    end = time.monotonic() + 60
    for workflow in started:
        while (shown := client.get(f"/workflows/{workflow}").json()) == {"status": "RUNNING"} or shown == {
            "status": "NOT_STARTED"
        }:
            assert time.monotonic() < end, shown
            time.sleep(0.05)
        assert shown == {"status": "SUCCEEDED"}
    with Session(engine) as session:
        told["orders"] = session.query(Order).count()
    told["workflows"] = len(stabilize.find())
    told["missing"] = client.get("/workflows/nothing").status_code
    told["messages"] = stabilize.store.count_messages()
print(json.dumps(told))

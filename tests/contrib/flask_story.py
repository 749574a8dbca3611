"""What a customer does in the Flask shop; run by its test in a process of its own."""

from __future__ import annotations

import json
import time

from flask_shop import Order, flask_app, stabilize

client = flask_app.test_client()
sold = client.post("/orders", data={"item": "lamp"})
refused = client.post("/orders", data={"item": "unicorn"})
end = time.monotonic() + 60
while (shown := client.get("/orders/1").json)["status"] != "SUCCEEDED" and time.monotonic() < end:
    time.sleep(0.05)
# What was shown last may have been read before the end, and the status after it.
shown = client.get("/orders/1").json
with flask_app.app_context():
    orders = Order.query.count()
print(
    json.dumps(
        {
            "sold": sold.status_code,
            "refused": refused.status_code,
            "order": shown,
            "orders": orders,
            "workflows": len(stabilize.find()),
            "messages": stabilize.store.count_messages(),
        }
    )
)

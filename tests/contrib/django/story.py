"""What a customer and a visitor of the admin do in the example shop; run by its test in a process of its own."""

from __future__ import annotations

import json
import time

import django

django.setup()

from django.contrib.auth.models import User  # noqa: E402 - Django comes first
from django.test import Client  # noqa: E402
from project import stabilize  # noqa: E402
from shop.models import Order, Stock  # noqa: E402

Stock.objects.create(item="lamp", left=3)
client = Client()

sold = client.post("/orders/", {"item": "lamp", "amount": 2})
refused = client.post("/orders/", {"item": "lamp", "amount": 2})

order = sold.json()["order"]
end = time.monotonic() + 60
while not Order.objects.get(id=order).done and time.monotonic() < end:
    time.sleep(0.05)
client.force_login(User.objects.create_superuser("kim"))
print(
    json.dumps(
        {
            "sold": sold.status_code,
            "refused": [refused.status_code, refused.json()["error"]],
            "order": client.get(f"/orders/{order}/").json(),
            "orders": Order.objects.count(),
            "workflows": [run.id == sold.json()["workflow"] for run in stabilize.find()],
            "left": Stock.objects.get().left,
            "done": Order.objects.get().done,
            "linked": f"/admin/stabilize/workflow/{sold.json()['workflow']}/change/"
            in client.get("/admin/shop/order/").content.decode(),
            "lease": stabilize.settings.lease,
            "messages": stabilize.store.count_messages(),
        }
    )
)

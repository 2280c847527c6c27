"""An inspection arrives: the row and the event are one transaction, or neither is there."""

import time

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from shop.delivery import outbox
from shop.models import Inspection


@csrf_exempt
@require_POST
def inspect(request: HttpRequest) -> JsonResponse:
    device, severity = request.POST["device"], int(request.POST["severity"])
    # Outside of atomic() Django commits each statement by itself: enqueue_dbapi refuses that with a sentence.
    with transaction.atomic():
        inspection = Inspection.objects.create(device=device, severity=severity)
        with connection.cursor() as cursor:
            # A SQLAlchemy session of its own would be another connection, and another transaction. This is Django's.
            message = outbox.enqueue_dbapi(
                cursor,
                "enos",
                {
                    "assetId": device,
                    "time": time.time_ns() // 1_000_000,
                    "events": {"crack": {"severity": severity, "photo": "local://photo"}},
                },
                files={"photo": request.FILES["photo"]},
                key=f"inspection-{inspection.id}",
            )
        if severity > 10:
            raise ValueError("no such severity")  # rolls back: no row, no event
    return JsonResponse({"inspection": inspection.id, "message": message.id}, status=201)

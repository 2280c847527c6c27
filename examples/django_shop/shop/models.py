"""What the shop keeps for itself."""

from django.db import models


class Inspection(models.Model):
    device = models.CharField(max_length=40)
    severity = models.IntegerField()

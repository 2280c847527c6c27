"""What pytest finds by itself wherever outbox is installed: the fixtures for whoever tests a producer."""

"""Sans-IO cores of the streaming protocols: bytes and events in, bytes and events out."""

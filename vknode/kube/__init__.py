"""The API server's side: connection, hot-path client, reflector, trimmed models.

Knows nothing of pools or agents (held by import-linter).
"""

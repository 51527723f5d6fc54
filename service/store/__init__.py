"""Persistence: support sets, API keys and answers to repeat, in SQLite or PostgreSQL."""

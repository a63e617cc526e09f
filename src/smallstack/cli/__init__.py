"""Entry points: one command per file, imported when asked for."""

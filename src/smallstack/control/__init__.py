"""Orchestration at the client: create and its waits, images, the private world of a demo."""

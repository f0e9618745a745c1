"""Serving: a model directory behind OpenAI's HTTP interface, with a chat page."""

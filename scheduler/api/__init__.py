"""The HTTP faces: the OpenAI relay on the hot path, metrics and admin routes on their own listener."""

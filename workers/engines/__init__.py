"""One file an engine; one face: an ASGI app and a feed of steps (``workers.worker.Engine``)."""

"""The upper wing: decide, send, settle. It imports ``workers``; never the reverse."""

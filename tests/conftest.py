"""For every test: hypothesis prints what reproduces a failure, and a slow machine is no failure."""

from hypothesis import settings

settings.register_profile("jouleway", deadline=None, print_blob=True)
settings.load_profile("jouleway")

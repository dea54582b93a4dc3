"""Settings of the whole test run."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every machine; no deadline, because a busy machine is not a failure.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")

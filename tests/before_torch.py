"""Environment that libraries read at load time; tests/conftest.py imports this before torch."""

import os

# A thread that waits for work sleeps: one that spins takes the core from another test.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

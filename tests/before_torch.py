"""Environment that libraries read at load time; tests/conftest.py imports this before torch."""

import os

# Idle threads sleep. Spinning threads would take cores from other tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

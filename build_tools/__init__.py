"""How resnet_fused is built. ``setup.py`` imports this; nothing here is installed.

``toolchain`` finds torch, the compilers and a CUDA toolkit, ``archs`` decides which GPUs to compile for,
``ninja_file`` writes the build down, ``command`` is the ``build_ext`` that runs it. ``glibc`` lets a
new machine build for old ones; ``wheel`` makes and audits the wheel.
"""


class BuildError(SystemExit):
    """Stops the build with one sentence instead of a traceback: what is wrong, and what to type."""

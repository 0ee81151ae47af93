"""How resnet_fused is built. ``setup.py`` imports this; nothing here is installed.

``toolchain`` finds torch, the compilers and a CUDA toolkit, ``archs`` decides which GPUs to compile for,
``ninja_file`` writes the ninja file, and ``command`` is the ``build_ext`` that runs it. ``glibc`` links libraries that
load with an older glibc; ``wheel`` builds and audits the wheel.
"""


class BuildError(SystemExit):
    """Stops the build with a sentence, instead of a traceback, that says what is wrong and which command to run."""

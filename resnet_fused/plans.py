"""The plans of ``ops.explain_*`` as records: which kernel runs, and why the other candidates lost."""

import json
from typing import Any, NamedTuple


class Rejected(NamedTuple):
    """A candidate that lost. ``fields`` has its name, tile and predicted time where it has them."""

    kernel: str
    reason: str
    fields: dict[str, Any]


class Plan(NamedTuple):
    """The chosen kernel. ``text`` is the plan in words: a line for the kernel, and one for each rejected candidate."""

    kernel: str
    fields: dict[str, Any]
    rejected: list[Rejected]
    text: str

    @property
    def summary(self) -> str:
        """The first line of the text."""
        return self.text.partition("\n")[0]


def of_text(text: str) -> Plan:
    """A plan that is only a sentence, "where: why", for a convolution without a kernel of its own."""
    return Plan(text.partition(":")[0], {}, [], text)


def read(explained: tuple[str, str]) -> Plan:
    """The plan from the two results of ``ops.explain_cpu``, ``explain_cuda`` or ``explain_cuda_block``."""
    text, fields = explained[0], json.loads(explained[1])
    rejected = [Rejected(each["kernel"], each["reason"], each) for each in fields.pop("rejected")]
    return Plan(fields["kernel"], fields, rejected, text)


class Family(NamedTuple):
    """A kernel family of the trust table. ``report``: of the run that verified it on this compute capability, or ""."""

    name: str
    report: str
    words: str

    @property
    def verified(self) -> bool:
        """Whether it is verified there."""
        return bool(self.report)


def families(explained: tuple[str, str]) -> list[Family]:
    """The rows of ``ops.explain_trust``."""
    return [Family(**each) for each in json.loads(explained[1])["families"]]

"""What a study found: figures, tables, and how well eager and fused networks agree."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from .training import Curve

EARLY_LIMIT = 0.01  # relative difference of the losses before and after the first update
CONCLUSIVE = 2.0  # points of training error
SAME_WEIGHTS_LIMIT = 1e-3  # relative difference of results computed from the same weights


@dataclass(frozen=True)
class Table:
    """Rows of cells that are already text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) + ("---:",) * (len(self.columns) - 1), *self.rows]
        title = f"**{self.title}**\n\n" if self.title else ""
        return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Agreement:
    """One comparison of an eager with a fused result; they agree if ``difference <= limit``."""

    what: str
    difference: float
    limit: float
    unit: str
    conclusive: bool = True  # False: the limit is so wide that the two could differ unseen

    @property
    def verdict(self) -> str:
        return "**no**" if not self.holds else "yes" if self.conclusive else "cannot tell"

    @property
    def holds(self) -> bool:
        return self.difference <= self.limit  # False for NaN


@dataclass
class Report:
    """Filled by ``run`` of a study."""

    data: str
    figures: dict[str, Figure] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)  # for results.json

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        cells = tuple(tuple(str(cell) for cell in row) for row in rows)
        self.tables.append(Table(title, tuple(columns), cells))

    def same_weights(self, what: str, eager: object, fused: object, limit: float = SAME_WEIGHTS_LIMIT) -> None:
        """Compares what both kinds of block compute from the same weights: the largest difference, relative to the
        largest eager value."""
        a, b = np.asarray(eager, dtype=np.float64), np.asarray(fused, dtype=np.float64)
        scale = max(float(np.abs(a).max()), 1e-30)
        self.agreements.append(Agreement(what, float(np.abs(a - b).max()) / scale, limit, "of the largest value"))

    def curves(
        self,
        what: str,
        eager: Sequence[Curve],
        fused: Sequence[Curve],
        finished: bool = True,
        exact: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Compares training runs from the same seeds.

        Rounding differences grow with each step until two runs are two samples of one distribution. So the losses
        before and after the first update must agree; and if training is ``finished``, the means over seeds of the
        final training error may differ by at most twice the larger range over seeds, plus one image in a thousand.

        ``exact``: the first losses in float64, for networks so deep that rounding shows after a single step. Then the
        error of the fused runs against them may be twice that of the eager runs, plus the same limit.
        """
        e, f = (np.array([curve.early for curve in runs]) for runs in (eager, fused))
        truth = e if exact is None else np.array(exact)
        limit = EARLY_LIMIT + 2 * float((np.abs(e - truth) / truth).max())
        first = float((np.abs(f - truth) / truth).max())  # NaN if any is
        against = "relative" if exact is None else "relative, against float64"
        self.agreements.append(Agreement(f"{what}: first two losses", first, limit, against))
        if finished:
            e, f = ([100 * curve.train_error[-1] for curve in runs] for runs in (eager, fused))
            limit = 2 * float(max(np.ptp(e), np.ptp(f))) + 0.1
            difference = abs(float(np.mean(e) - np.mean(f)))
            conclusive = limit <= CONCLUSIVE
            self.agreements.append(Agreement(f"{what}: final training error", difference, limit, "points", conclusive))

    def failures(self) -> list[str]:
        """One sentence for each disagreement."""
        return [
            f"{a.what}: eager and fused differ by {a.difference:.3g} ({a.unit}); {a.limit:.3g} is allowed"
            for a in self.agreements
            if not a.holds
        ]


def spread(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """ "mean (smallest to largest)" of one value per seed."""
    scaled = [scale * value for value in values]
    mean = sum(scaled) / len(scaled)
    return f"{mean:.{digits}f} ({min(scaled):.{digits}f} to {max(scaled):.{digits}f})"


def percent(values: Sequence[float], digits: int = 1) -> str:
    """``spread`` of fractions, in percent."""
    return spread(values, digits, 100)

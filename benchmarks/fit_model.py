"""Fits the constants of the CUDA cost model to a GPU run: ``python -m benchmarks.fit_model FOLDER [--write]``.

FOLDER holds the ``kernels-*.json`` files that ``benchmarks.gpu_kernels`` wrote on one GPU. A run that covers more
engines and tiles determines more constants. Prints the ratio of prediction to measurement for each layer before and
after the fit, the constants that the run determines, and a diff of ``csrc/cuda/plan/cost_constants.h``. ``--write``
applies the diff.

The model is evaluated by ``ops.predict_cuda`` with varied constants. The fit minimises the absolute logarithm of
prediction over measurement, robust to outliers. For launches that were timed alone, a common offset (the cost of a
graph replay) is fitted too; it is not part of the model. A constant that stays uncertain by more than 15 % keeps its
value. If something else is the bottleneck, every rate above some value fits equally well; the fit then takes the
lowest.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import gpu_runs, model_constants
from .gpu_runs import NoRun, Run, Sample

Vector = np.ndarray
#: Fitted constants. The others are facts (macs, l2_size) or only scale these (clock).
FITTED = ("launch", "dram", "l2", "sm80_share", "torch_share", "sm90_share", "rows_share")
REPLAY = "replay"  # microseconds, fitted in addition
CERTAIN = 0.15  # largest relative standard error of a determined constant; the model itself is no better
OUTLIER = 0.1  # logarithm from which on a residual counts linearly
NOISE = 0.02  # logarithm: the least assumed error of a measurement
L2_STARTS = (20.0, 30.0, 40.0, 55.0)  # bytes a clock; which layers are L2-bound depends on the start
SAME = 0.01  # relative; another processor may round a constant differently


class Fit(NamedTuple):
    values: dict[str, float]  # constants that the run determines, to three digits
    errors: dict[str, float]  # their relative standard errors
    undetermined: list[str]
    replay: float  # microseconds
    before: Vector  # prediction over measurement, of the run's samples
    after: Vector


class Objective:
    """Logarithms of prediction over measurement as a function of the parameters."""

    def __init__(self, run: Run, row: dict[str, float]) -> None:
        self._run, self._row = run, row
        self._problems = list(dict.fromkeys(sample.problem for sample in run.samples))
        at = {problem: i for i, problem in enumerate(self._problems)}
        self._at = np.array([at[sample.problem] for sample in run.samples], dtype=int)
        self._alone = np.array([sample.alone for sample in run.samples])
        self._measured = np.array([sample.microseconds for sample in run.samples])
        self._copies = np.array(run.bytes_per_s)
        self.names = [*(name for name in FITTED if row[name] > 0), REPLAY]

    def start(self, l2: float) -> Vector:
        """Starting values from the run alone, so that a run always gives the same constants."""
        guess = {name: np.log(0.5) for name in FITTED if name.endswith("_share")}
        guess |= {"launch": np.log(2000.0), "l2": np.log(l2), REPLAY: 0.0}
        guess["dram"] = np.log(1e-9 * np.median(self._copies) / self._run.device[1])
        return np.array([guess[name] for name in self.names])

    def at_row(self, name: str) -> float:
        return float(np.log(self._row[name]))

    def constants(self, parameters: Vector) -> dict[str, float]:
        fitted = dict(zip(self.names, parameters, strict=True))
        return {name: float(np.exp(fitted[name])) if name in fitted else old for name, old in self._row.items()}

    def ratios(self, constants: dict[str, float], replay: float) -> Vector:
        """Prediction over measurement of each sample."""
        values = list(constants.values())
        times = np.array([problem.microseconds(self._run.device, values) for problem in self._problems])
        return (times[self._at] + replay * self._alone) / self._measured

    def replay(self, parameters: Vector) -> float:
        return max(0.0, float(parameters[self.names.index(REPLAY)]))

    def residuals(self, parameters: Vector) -> Vector:
        constants = self.constants(parameters)
        copies = self._copies / (1e9 * constants["dram"] * self._run.device[1])  # relative times
        return np.log(np.concatenate([self.ratios(constants, self.replay(parameters)), copies]))

    def slopes(self, parameters: Vector, active: Sequence[int]) -> Vector:
        columns = []
        for i in active:
            step = np.zeros_like(parameters)
            step[i] = 0.01
            columns.append((self.residuals(parameters + step) - self.residuals(parameters - step)) / 0.02)
        return np.stack(columns, axis=1)


def cost(residuals: Vector) -> float:
    return float(2 * OUTLIER**2 * np.sum(np.sqrt(1 + (residuals / OUTLIER) ** 2) - 1))


def weights(residuals: Vector) -> Vector:
    return 1 / np.sqrt(1 + (residuals / OUTLIER) ** 2)


def minimised(objective: Objective, parameters: Vector, active: Sequence[int]) -> Vector:
    """Levenberg-Marquardt, reweighted for outliers at every step."""
    residuals, damping = objective.residuals(parameters), 1e-2
    for _ in range(60):
        slopes = objective.slopes(parameters, active)
        weighted = slopes.T * weights(residuals)
        normal, gradient = weighted @ slopes, weighted @ residuals
        for _ in range(8):
            system = normal + damping * np.diag(np.diag(normal)) + 1e-9 * np.eye(len(active))
            step = np.clip(-np.linalg.solve(system, gradient), -0.3, 0.3)
            trial = parameters.copy()
            trial[list(active)] += step
            tried = objective.residuals(trial)
            if cost(tried) < cost(residuals):
                break
            damping *= 4
        else:
            return parameters
        parameters, residuals, damping = trial, tried, damping / 3
        if np.abs(step).max() < 1e-4:
            return parameters
    return parameters


def standard_errors(objective: Objective, parameters: Vector, active: Sequence[int]) -> Vector:
    residuals, slopes = objective.residuals(parameters), objective.slopes(parameters, active)
    noise = max(NOISE, 1.48 * float(np.median(np.abs(residuals))))
    normal = (slopes.T * weights(residuals)) @ slopes + 1e-9 * np.eye(len(active))
    return noise * np.sqrt(np.diag(np.linalg.inv(normal)))


def fit(run: Run, row: dict[str, float]) -> Fit:
    """Fits the constants of ``row`` that the run determines; the others keep their values."""
    if not run.samples:
        raise NoRun(f"{run.folder} has no times by a named engine; run with RESNET_FUSED_CUDA_ENGINE=sm80, for one")
    objective = Objective(run, row)
    active = list(range(len(objective.names)))
    found = [minimised(objective, objective.start(l2), active) for l2 in L2_STARTS]
    costs = [cost(objective.residuals(p)) for p in found]
    parameters = min((p for p, c in zip(found, costs, strict=True) if c <= 1.001 * min(costs) + 1e-6), key=np.sum)
    undetermined = []
    while True:
        errors = dict(zip(active, standard_errors(objective, parameters, active), strict=True))
        constants = [i for i in active if objective.names[i] != REPLAY]
        worst = max(constants, key=lambda i: errors[i], default=None)
        if worst is None or errors[worst] <= CERTAIN:
            break
        active.remove(worst)
        undetermined.append(objective.names[worst])
        parameters[worst] = objective.at_row(objective.names[worst])
        parameters = minimised(objective, parameters, active)
    after = objective.constants(parameters)
    values = {objective.names[i]: float(f"{after[objective.names[i]]:.3g}") for i in constants}
    replay = objective.replay(parameters)
    return Fit(
        values,
        {objective.names[i]: float(errors[i]) for i in constants},
        undetermined,
        replay,
        objective.ratios(row, replay),
        objective.ratios(row | values, replay),
    )


def outdated(results: Path, text: str) -> list[str]:
    """Why the header's constants are not those of the newest run of each family; empty if they are."""
    found, runs = [], gpu_runs.runs(results)
    for row in model_constants.families(text):
        own = [run for run in runs if model_constants.family(run.arch, text).oldest == row.oldest]
        newest = max(own, key=lambda run: run.date, default=None)
        if newest is None:
            if row.measured_by:
                found.append(f"sm_{row.oldest}: fitted to {row.measured_by}, of which {results} has nothing")
            continue
        command = f"python -m benchmarks.fit_model {newest.folder} --write"
        if newest.name != row.measured_by:
            fitted_to = row.measured_by or "no run"
            told = f"the newest run is {newest.name} of {newest.date}, and the constants are fitted to {fitted_to}"
            found.append(f"sm_{row.oldest}: {told}; {command}")
            continue
        for name, value in fit(newest, row.values).values.items():
            if abs(value - row.values[name]) > SAME * value:
                told = f"{name} is {row.values[name]:g}, and {newest.name} gives {value:g}"
                found.append(f"sm_{row.oldest}: {told}; {command}")
    return found


def table(samples: Sequence[Sample], fitted: Fit) -> str:
    rows = ["| engine | layer | | measured, us | before | after |", "|---|---|---|---:|---:|---:|"]
    for sample, before, after in zip(samples, fitted.before, fitted.after, strict=True):
        how = "alone" if sample.alone else "in a row"
        shown = f"{sample.microseconds:.1f} | {before:.2f} | {after:.2f}"
        rows.append(f"| {sample.problem.engine} | {sample.layer} | {how} | {shown} |")
    return "\n".join(rows)


def summary(run: Run, row: dict[str, float], fitted: Fit) -> str:
    lines = [f"{run.gpu}, {run.date}: {len(run.samples)} times of kernels that the model knows"]
    for name, value in fitted.values.items():
        lines.append(f"  {name}: {row[name]:g} -> {value:g}, within {fitted.errors[name]:.1%}")
    stay = [*fitted.undetermined, *(name for name in row if name not in FITTED)]
    lines.append(f"  stay: {', '.join(stay)}" + (" (the first not determined)" if fitted.undetermined else ""))
    if fitted.replay:
        lines.append(f"  replaying a graph took {fitted.replay:.1f} us beside, in every sample of a launch alone")
    peak = 2e9 * row["macs"] * row["clock"] * run.device[1]
    for name in FITTED:
        if name.endswith("_share") and row[name]:
            lines.append(f"  {name} is {peak * (row | fitted.values)[name] * 1e-12:.0f} TFLOP/s")
    lines.append(f"  a large matrix product reached {np.median(run.flop_per_s) * 1e-12:.0f} TFLOP/s")
    before, after = (float(np.exp(np.median(np.abs(np.log(r))))) - 1 for r in (fitted.before, fitted.after))
    lines.append(f"  off by (median) {before:.1%} before, {after:.1%} after")
    return "\n".join(lines)


def main(
    argv: Sequence[str] | None = None, header: Path = model_constants.HEADER, results: Path = gpu_runs.RESULTS
) -> None:
    """Prints the fit, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help=f"change {header.name}")
    args = parser.parse_args(argv)
    text = header.read_text()
    try:
        run = gpu_runs.read(args.folder)
        row = model_constants.family(run.arch, text)
        fitted = fit(run, row.values)
    except NoRun as error:
        parser.error(str(error))
    if args.write and run.folder.resolve().parent != results.resolve():
        parser.error(f"{run.folder} is not in {results}, where the tests look for the run; move it there first")
    print(table(run.samples, fitted), "\n\n", summary(run, row.values, fitted), "\n", sep="")
    new = model_constants.rewritten(text, row.oldest, run.name, fitted.values)
    names = (f"{where}/csrc/cuda/{header.name}" for where in "ab")
    print("".join(difflib.unified_diff(text.splitlines(True), new.splitlines(True), *names)), end="")
    if args.write:
        header.write_text(new)
        print("\nwritten; build again, then python -m benchmarks.predict --write")


if __name__ == "__main__":
    main()

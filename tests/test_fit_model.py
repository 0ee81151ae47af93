"""benchmarks.fit_model: the committed constants fit the newest run, and a fit recovers the constants of a run."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from benchmarks import fit_model, gpu_runs, model_constants
from benchmarks.gpu_runs import Problem
from resnet_fused import ops, plans
from resnet_fused.cli._gpus import GPUS

HEADER = model_constants.HEADER.read_text()
H200 = model_constants.family(90).values
TRUTH = H200 | dict(launch=1900, l2=33, dram=29.5, sm80_share=0.4, torch_share=0.6, sm90_share=0.62, rows_share=0.5)
REPLAY = 3.0  # microseconds
TILES = ["sm80:128x128", "sm80:128x64", "sm80:64x64", "sm90:256x128", "sm90:256x64", "sm90:128x128", "sm90:rows:4x56"]
FEW = ["sm80:128x64", "sm80:64x64", "sm90:256x128", "sm90:rows:4x56", "torch"]
ENGINES = [*TILES, "sm90:rows:8x8", "torch", "planned"]
SHAPES = {"64@56": (64, 64, 3, 56), "128@28": (128, 128, 3, 28), "256@14": (256, 256, 3, 14), "512@7": (512, 512, 3, 7)}
SHAPES |= {"1x1 64-256@56": (64, 256, 1, 56), "1x1 512-128@28": (512, 128, 1, 28)}
DAY = "2026-12-01T12:00+00:00"


def write_run(folder, truth, engines=ENGINES, *, gpu="NVIDIA H200", date=DAY, noise=0.0, batches=(1, 32, 256)):
    """Writes the results of gpu_kernels for a GPU with the constants ``truth``; ``noise`` is the relative error."""
    rng = np.random.default_rng(0)
    device = gpu_runs.device_of(gpu)
    roofline = {"bytes_per_s": 1e9 * truth["dram"] * device[1] * np.exp(noise * rng.normal()), "flop_per_s": 7.3e14}

    def times(problem, moved):
        try:
            cold = problem.microseconds(device, list(truth.values()))
        except RuntimeError:  # another kernel ran
            return {"median_us": 1.0, "warm_us": 1.0}
        near = truth | {"dram": 3 * truth["dram"]} if moved < 40e6 else truth  # cached in L2 for twenty launches
        warm = problem.microseconds(device, list(near.values()))
        off = np.exp(noise * rng.normal(size=2))
        return {"median_us": (cold + REPLAY) * off[0], "warm_us": warm * off[1]}

    folder.mkdir(parents=True, exist_ok=True)
    for engine in engines:
        layers = {}
        for title, (c, k, r, hw) in SHAPES.items():
            for n in batches:
                x, weight, residual = (n, c, hw, hw), (k, c, r, r), k >= c
                moved = 2 * (n * hw * hw * (c + k * (1 + residual)) + k * c * r * r)
                contenders = {"eager": {"median_us": 1.0, "warm_us": 1.0}}
                known = {
                    "resnet_fused": "sm80" if engine == "planned" else engine,
                    "cudnn_convolution_add_relu": "cudnn",
                }
                for name, kernel in known.items():
                    contenders[name] = times(Problem(x, weight, 1, residual, kernel), moved)
                layers[f"{title} batch {n} bfloat16"] = {
                    "kind": "Layer", "x": list(x), "weight": list(weight), "stride": 1, "bytes": moved,
                    "contenders": contenders, "failed": {},
                }  # fmt: skip
        layers["stats 64@56 batch 1 bfloat16"] = {"kind": "Stats"}
        environment = {"gpu": gpu, "engine": engine, "date": date}
        report = {"environment": environment, "roofline": roofline, "layers": layers}
        (folder / f"kernels-{re.sub('[^a-z0-9]+', '-', engine)}.json").write_text(json.dumps(report))
    return folder


def test_constants_are_fitted_to_the_newest_run():
    assert fit_model.outdated(gpu_runs.RESULTS, HEADER) == []


def test_header_constants_match_the_compiled_ones():
    """Passing a row of the header to the model changes nothing, so names and order match the C++ struct."""
    fields = re.findall(r"^  (?:double|int32_t|const char\*) (\w+);", HEADER, re.M)
    rows = model_constants.families(HEADER)
    for row in rows:
        assert fields == ["oldest", "measured_by", *row.values]
    assert {model_constants.family(device[0]).oldest for device in GPUS.values()} == {row.oldest for row in rows}
    for (gpu, device), engine in ((g, e) for g in GPUS.items() for e in ("torch", "cudnn", *TILES)):
        if engine.startswith("sm90") and gpu not in ("h100", "h200"):
            continue
        problem, values = (
            Problem((32, 64, 56, 56), (64, 64, 3, 3), 1, True, engine),
            model_constants.family(device[0]).values,
        )
        compiled = problem.microseconds(device, [])
        assert compiled == problem.microseconds(device, list(values.values()))
        assert compiled != problem.microseconds(device, list((values | {"launch": 1}).values()))


def test_predict_cuda_agrees_with_explain_cuda(monkeypatch):
    for engine in TILES:
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", engine)
        shape = ([32, 64, 56, 56], [64, 64, 3, 3], [1, 1], [1, 1])
        explained = ops.explain_cuda(*shape, [1, 1], 1, "bfloat16", "plain", [], [1, 1], True, True, True, GPUS["h200"])
        time = ops.predict_cuda(*shape, "bfloat16", True, GPUS["h200"], engine, [])
        assert plans.read(explained).fields["microseconds"] == time


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            dict(engine="sm90:rows", weight=[64, 64, 1, 1]),
            "no kernel of engine sm90:rows takes a convolution of x_shape",
        ),
        (dict(engine="planned"), "RESNET_FUSED_CUDA_ENGINE is planned; one of"),
        (dict(constants=[1.0]), "constants has 1 numbers; the 10 of cost_constants.h"),
    ],
)
def test_bad_arguments_are_refused(change, sentence):
    arguments = dict(x=[1, 64, 8, 8], weight=[64, 64, 3, 3], engine="sm80", constants=[]) | change
    with pytest.raises(RuntimeError, match=sentence):
        ops.predict_cuda(
            arguments["x"], arguments["weight"], [1, 1], [1, 1], "bfloat16", False, GPUS["h200"], arguments["engine"],
            arguments["constants"],
        )  # fmt: skip


def test_fit_recovers_the_constants_of_a_run(tmp_path):
    run = gpu_runs.read(write_run(tmp_path / "h200", TRUTH, noise=0.03))
    fitted = fit_model.fit(run, H200)
    assert set(fitted.values) == set(fit_model.FITTED)
    for name, value in fitted.values.items():
        assert value == pytest.approx(TRUTH[name], rel=0.04), name
    assert fitted.replay == pytest.approx(REPLAY, abs=0.2)
    assert np.median(np.abs(fitted.after - 1)) < 0.04 < np.median(np.abs(fitted.before - 1))


def test_lowest_of_equally_good_rates_is_chosen(tmp_path):
    """With L2 at 33 bytes a clock, a convolution in 256x128 tiles reaches at most 0.69 of the peak."""
    truth = TRUTH | {"torch_share": 0.9}
    run = gpu_runs.read(write_run(tmp_path / "h200", truth, ["torch", "sm80:64x64"], noise=0.02))
    assert fit_model.fit(run, H200).values["torch_share"] == pytest.approx(0.69, rel=0.03)


def test_outliers_do_not_move_the_fit(tmp_path):
    folder = write_run(tmp_path / "h200", TRUTH, FEW, noise=0.02)
    for path in list(folder.glob("kernels-sm80*"))[:2]:
        report = json.loads(path.read_text())
        report["layers"]["64@56 batch 32 bfloat16"]["contenders"]["resnet_fused"]["median_us"] *= 20
        path.write_text(json.dumps(report))
    for name, value in fit_model.fit(gpu_runs.read(folder), H200).values.items():
        assert value == pytest.approx(TRUTH[name], rel=0.05), name


def test_undetermined_constants_keep_their_values(tmp_path):
    run = gpu_runs.read(write_run(tmp_path / "h200", TRUTH, ["sm80:128x128"], noise=0.02, batches=(256,)))
    fitted = fit_model.fit(run, H200)
    assert {"sm90_share", "rows_share", "launch"} <= set(fitted.undetermined)
    assert set(fitted.values) >= {"dram", "sm80_share"}
    text = model_constants.rewritten(HEADER, 90, "h200", fitted.values)
    new = model_constants.family(90, text).values
    assert {name for name in new if new[name] != H200[name]} == set(fitted.values)


@pytest.fixture
def header(tmp_path):
    path = tmp_path / "model_constants.h"
    path.write_text(HEADER)
    return path


def test_newer_runs_and_edited_constants_are_noticed(tmp_path, header, capsys):
    results = tmp_path / "results"
    folder = write_run(results / "h200", TRUTH, FEW, noise=0.02, batches=(1, 256))
    (reason,) = fit_model.outdated(results, HEADER)
    before = model_constants.family(90, HEADER).measured_by
    assert reason == (
        f"sm_90: the newest run is h200 of {DAY}, and the constants are fitted to {before}; "
        f"python -m benchmarks.fit_model {folder} --write"
    )
    fit_model.main([str(folder)], header, results)
    assert header.read_text() == HEADER, "without --write"
    shown = capsys.readouterr().out
    assert re.search(rf'^-        "{before}",  +// measured_by\n', shown, re.M)
    assert '+        "h200",  // measured_by\n' in shown
    assert re.search(r"^\+        3[234][.\d]*, +// l2: fitted$", shown, re.M)
    assert re.search(
        r"^\| sm80:64x64 \| 64@56 batch 1 bfloat16 \| alone \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$", shown, re.M
    )
    assert "stay: clock, macs, l2_size" in shown
    fit_model.main([str(folder), "--write"], header, results)
    text = header.read_text()
    assert fit_model.outdated(results, text) == []
    assert [row for row in model_constants.families(text) if row.oldest != 90] == [
        row for row in model_constants.families(HEADER) if row.oldest != 90
    ]

    edited = re.sub(r"^( +)[\d.]+,( +// sm80_share: fitted)$", r"\g<1>0.5,\2", text, flags=re.M)
    assert edited != text
    assert any("sm80_share is 0.5, and h200" in reason for reason in fit_model.outdated(results, edited))
    write_run(results / "gpu-out", TRUTH, ["sm80"], date="2026-12-03T12:00+00:00")
    assert fit_model.outdated(results, text) == [], "which is not committed"
    unpacked, h100 = results / "h100" / "benchmarks", "NVIDIA H100 80GB HBM3"
    write_run(unpacked, TRUTH, ["sm80"], gpu=h100, date="2026-12-02T12:00+00:00")
    (reason,) = fit_model.outdated(results, text)
    assert "the newest run is h100 of 2026-12-02" in reason
    for path in results.rglob("kernels-*.json"):
        path.unlink()
    (reason,) = fit_model.outdated(results, text)
    assert reason == f"sm_90: fitted to h200, of which {results} has nothing"


def test_folders_without_a_usable_run_are_refused(tmp_path, header, capsys):
    def refused(*argv):
        with pytest.raises(SystemExit):
            fit_model.main([str(a) for a in argv], header, tmp_path / "results")
        return capsys.readouterr().err

    assert "has no kernels-*.json" in refused(tmp_path)
    unknown = write_run(tmp_path / "run", TRUTH, ["sm80"])
    assert "is not in" in refused(unknown, "--write")
    for path in unknown.iterdir():
        path.write_text(path.read_text().replace("NVIDIA H200", "NVIDIA T4"))
    assert "the GPU is NVIDIA T4, none of a100, a10" in refused(unknown)
    planned = write_run(tmp_path / "planned", TRUTH, ["planned"])
    for path in planned.iterdir():
        path.write_text(path.read_text().replace("cudnn_convolution_add_relu", "cuDNN graph API"))
    assert "has no times by a named engine" in refused(planned)
    write_run(unknown, TRUTH, ["torch"], gpu="NVIDIA B200")
    assert "has results of NVIDIA B200, NVIDIA T4" in refused(unknown)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "NVIDIA A10", "NVIDIA GeForce RTX 4090", "NVIDIA L4"])
def test_gpus_are_known_by_their_cuda_names(name):
    short = {"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A10": "a10", "NVIDIA L4": "l4"}.get(name, "rtx4090")
    assert gpu_runs.device_of(name) == GPUS[short]

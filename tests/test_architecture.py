"""Dependencies run one way, as docs/architecture.md shows; test files are independent and test names short."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import resnet_fused
from resnet_fused import models, modules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "resnet_fused"

# Each layer may import the ones after it, never the ones before it. A folder is one layer.
LAYERS = [
    "__main__",
    "cli",
    "__init__",
    "tracer",
    "freeze",
    "explain",
    "convert",
    "recognise",
    "match",
    "models",
    "modules",
]
LAYERS += ["functional", "chain", "ops", "first_use", "_library"]
# Any layer may import these; they import none.
LEAVES = {"reference", "criterion", "plans", "_build_info", "_indexing"}


def python_files():
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def layer_of(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_layers(path):
    """Returns the layers of this package that a file imports, also inside functions."""
    package = ["resnet_fused", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules_ = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            modules_ = [f"{prefix}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in modules_:
            parts = name.split(".")
            if parts[0] == "resnet_fused" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_upward(path):
    layer = layer_of(path)
    for imported in imported_layers(path):
        if imported in ("_C", "_C_cuda"):
            assert layer == "_library", f"{path.name} imports {imported}; only _library.py may"
        elif layer in LEAVES and imported != layer:
            pytest.fail(f"{path.name} imports {imported}, but it may import nothing of this package")
        elif imported in LAYERS and layer != "__init__" and layer != "cli":
            assert LAYERS.index(imported) >= LAYERS.index(layer), f"{path.name} imports {imported}, a layer above it"


# The files of resnet_fused/chain; each may import the ones after it.
CHAIN = [
    "__init__",
    "train",
    "runs",
    "infer",
    "program",
    "read",
    "layers",
    "norms",
    "backward",
    "forward",
    "convolutions",
]
CHAIN += ["layout", "eager", "statistics", "memory_format", "policy", "patches", "geometry", "spec"]


@pytest.mark.parametrize("name", CHAIN)
def test_no_file_of_the_chain_imports_upward(name):
    tree = ast.parse((PACKAGE / "chain" / f"{name}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for imported in [node.module] if node.module else [alias.name for alias in node.names]:
                assert CHAIN.index(imported) > CHAIN.index(name), f"{name}.py imports {imported}, a file above it"


def test_every_file_of_the_chain_has_its_place():
    assert sorted(CHAIN) == sorted(path.stem for path in (PACKAGE / "chain").glob("*.py"))


def test_every_file_has_a_layer():
    assert {layer_of(path) for path in python_files()} <= set(LAYERS) | LEAVES


def test_reference_imports_torch_only():
    roots = set()
    for node in (
        node for path in (PACKAGE / "reference").glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    ):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            roots.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert (node.level, node.module) == (1, "ops")
    assert roots <= {"torch", "typing", "collections"}


def test_import_loads_no_torchvision_or_cli_dependency():
    code = (
        "import sys, resnet_fused; "
        "print([m for m in ('torchvision', 'rich', 'sklearn', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# What a file below csrc/<key> must not include. Longer keys add to shorter ones.
NEVER_INCLUDED = {"common": ("cpu/", "cuda/"), "cpu": ("cuda/",), "cuda": ("cpu/",)}


def includes():
    """Maps each path below csrc to the paths below csrc that it includes. Includes are relative to csrc."""
    csrc = ROOT / "csrc"
    files = [path for path in csrc.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    pattern = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
    return {
        path.relative_to(csrc).as_posix(): [i for i in pattern.findall(path.read_text()) if (csrc / i).is_file()]
        for path in files
    }


def test_csrc_includes_downward_only():
    wrong = [
        f"{path} includes {include}"
        for path, included in includes().items()
        for folder, never in NEVER_INCLUDED.items()
        if path.startswith(f"{folder}/")
        for include in included
        if include.startswith(never)
    ]
    assert not wrong, "\n".join(wrong)


def test_csrc_has_no_include_cycle():
    graph = includes()
    finished, open_ = set(), []

    def visit(path):
        if path in finished:
            return
        assert path not in open_, " -> ".join([*open_, path])
        open_.append(path)
        for include in graph[path]:
            visit(include)
        finished.add(open_.pop())

    for path in graph:
        visit(path)


def public_modules():
    fused = [getattr(resnet_fused, name) for name in resnet_fused.__all__ if name.startswith("Fused")]
    networks = [value for value in vars(models).values() if inspect.isclass(value)]
    return {*fused, *networks, *(getattr(modules, name) for name in modules.__all__)}


@pytest.mark.parametrize("cls", sorted(public_modules(), key=lambda cls: cls.__name__))
def test_no_module_has_a_method_that_timm_calls_on_any_child(cls):
    assert issubclass(cls, torch.nn.Module)
    for name in ("fuse", "reparameterize", "switch_to_deploy"):
        assert not hasattr(cls, name), f"{cls.__name__}.{name} would be called by timm"


def test_sources_hold_no_home_directory_paths():
    for path in python_files():
        assert not re.search(r"""["'](/home/|/Users/)""", path.read_text()), path


TEST_FILES = {path.stem: ast.parse(path.read_text()) for path in sorted((ROOT / "tests").glob("test_*.py"))}


def imported_modules(tree):
    """Yields the last name component of every module that a file imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.rpartition(".")[2] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").rpartition(".")[2]
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("name", TEST_FILES)
def test_no_test_file_imports_another(name):
    """Shared code belongs in helper modules, such as tests/support.py and tests/op_case.py."""
    imported = TEST_FILES.keys() & set(imported_modules(TEST_FILES[name]))
    assert not imported, f"{name}.py imports {', '.join(sorted(imported))}"


@pytest.mark.parametrize("name", TEST_FILES)
def test_test_names_have_at_most_60_characters(name):
    functions = (node for node in ast.walk(TEST_FILES[name]) if isinstance(node, ast.FunctionDef))
    long = [f.name for f in functions if f.name.startswith("test_") and len(f.name) > 60]
    assert not long, f"{name}.py has names of more than 60 characters: {', '.join(long)}"


# What a file below csrc/cuda may include from there: the first pattern that matches its path decides. Kernels depend on
# neither torch nor the runtime, so that the emulator compiles the same files; plans depend on shapes only.
MAY_INCLUDE = {
    r"device/ptx/": r"device/(ptx/|\w+\.h$)",
    r"device/": r"device/",
    r"kernels/.*(\.cu|_variants\.cuh)$": r"device/|kernels/|runtime/",
    r"kernels/.*\.cuh$": r"device/|kernels/",
    r"kernels/.*\.cpp$": r"device/\w+\.h$|kernels/.*\.h$|plan/",
    r"kernels/": r"device/(\w+\.h$|tile/\w+\.h$)|kernels/.*\.h$|runtime/(queue|tensor_map)\.h$",
    r"plan/": r"device/\w+\.h$|kernels/.*\.h$|plan/",
    r"runtime/": r"device/\w+\.h$|kernels/.*\.h$|plan/|runtime/",
    r"ops/": r"device/\w+\.h$|kernels/.*\.h$|plan/|runtime/|ops/",
}
# A kernel may include those of its own folder and of the folders before it.
KERNEL_FOLDERS = ["bn", "pool", "sm80", "sm90"]


def test_csrc_cuda_includes_downward_only():
    for path, included in includes().items():
        if not path.startswith("cuda/"):
            continue
        allowed = next(may for pattern, may in MAY_INCLUDE.items() if re.match(f"cuda/{pattern}", path))
        for include in included:
            if path.startswith(("cuda/kernels/", "cuda/device/")):
                assert include.startswith("cuda/") or include == "common/dtype.h", f"{path} includes {include}"
            if include.startswith("cuda/"):
                assert re.match(f"cuda/({allowed})", include), f"{path} includes {include}"
            of, own = (name.removeprefix("cuda/kernels/").split("/")[0] for name in (include, path))
            if of in KERNEL_FOLDERS and own in KERNEL_FOLDERS:
                assert KERNEL_FOLDERS.index(of) <= KERNEL_FOLDERS.index(own), f"{path} includes {include}"

"""The rules of the repository that a machine can check: who imports whom, what an import costs, links and commands."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tiny import ROOT

LIBRARY = sorted((ROOT / "common").rglob("*.py"))
FOLDERS = sorted({path.parent for path in ROOT.glob("*/_repo.py")})
SCRIPTS = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
DOCUMENTS = [
    path for path in sorted(ROOT.rglob("*.md")) if not {".venv", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
]

# Slow to import, or wanted by few: inside the function that needs them.
LATE = {"matplotlib", "PIL", "scipy", "ot", "torchdyn", "torchdiffeq", "accelerate", "torchvision", "tensorflow"}
LATE |= {
    "pyarrow",
    "wandb",
    "tensorboard",
    "tyro",
    "yaml",
    "tqdm",
    "sklearn",
    "lmdb",
    "optuna",
    "openmm",
    "xarray",
    "torchcfm",
}
# What --help needs, below common/: rooms and files that import no torch.
TORCH_FREE = re.compile(
    r"__init__\.py|runtime\.py|(cli|scripts)/.*|records/(__init__|compare|page)\.py|data/__init__\.py|.*/__main__\.py"
    r"|prepare/(__init__|command)\.py|evaluate/(__init__|comparison|likelihood)\.py"
)
DATASETS = re.compile(r"mnist|cifar|celeb|lsun|lorenz", re.IGNORECASE)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, at_import: bool = False) -> list[str]:
    """Modules that a module imports, ``os.path`` or ``sst.config``: all, or those that its own import brings in."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if at_import and (isinstance(node, (ast.FunctionDef, ast.Lambda)) or _only_for_types(node)):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        found += imports(node, at_import)
    return found


def _only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# ---- who imports whom


def test_there_is_something_to_check():
    assert len(LIBRARY) > 15 and {folder.name for folder in FOLDERS} >= {"cifar10", "mnist"} and len(DOCUMENTS) >= 1


@pytest.mark.parametrize("path", LIBRARY, ids=ids)
def test_the_library_imports_no_folder_and_nothing_slow(path):
    tree = parsed(path)
    names = {p.stem for p in (ROOT / "2D-toys").glob("*.py")} | {folder.name for folder in FOLDERS}
    used = tops(imports(tree))
    assert not (used & names) - set(sys.stdlib_module_names), "common must not know the folders"
    early = tops(imports(tree, at_import=True))
    assert not early & LATE, "import it inside the function that needs it"
    if TORCH_FREE.fullmatch(path.relative_to(ROOT / "common").as_posix()):
        assert not early & {"torch", "numpy"}, "--help must not wait for torch"


@pytest.mark.parametrize("path", SCRIPTS, ids=ids)
def test_a_folder_imports_the_library_and_its_own_files_only(path):
    others = {folder.name for folder in FOLDERS} - {path.parent.name}
    assert not tops(imports(parsed(path))) & others
    if "__main__" in path.read_text():
        third = reached(path) - {"common", path.parent.name} - set(sys.stdlib_module_names)
        assert not third, "a script's --help must not wait for it"


def tops(names: Iterable[str]) -> set[str]:
    """Packages of modules."""
    return {name.split(".")[0] for name in names}


def reached(script: Path) -> set[str]:
    """Packages that a script's import brings in, through its folder's own modules."""
    names, todo = set(), [script]
    for path in todo:
        for name in imports(parsed(path), at_import=True):
            package, *rest = name.split(".")
            files = [
                script.with_name(f"{stem}.py") for stem in (package, *(rest if package == script.parent.name else ()))
            ]
            own = [file for file in files if file.exists()]
            todo += [file for file in own if file not in todo]
            names |= set() if own else {package}
    return names


def test_every_folder_begins_alike():
    texts = {folder.joinpath("_repo.py").read_text() for folder in FOLDERS}
    assert len(texts) == 1
    for path in SCRIPTS:
        if '__name__ == "__main__"' in path.read_text():
            found = [node.module for node in parsed(path).body if isinstance(node, ast.ImportFrom)]
            assert "_repo" in found and (
                found.index("_repo")
                < min(k for k, name in enumerate(found) if name.startswith(("common", path.parent.name)))
            ), path
            assert "run_main(" in path.read_text(), path


@pytest.mark.parametrize("path", [*LIBRARY, *SCRIPTS, *BENCHMARKS], ids=ids)
def test_no_star_imports_and_no_work_at_import(path):
    tree = parsed(path)
    stars = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert not stars
    loops = [node for node in tree.body if isinstance(node, (ast.For, ast.While, ast.With))]
    assert not loops, "work at import"


@pytest.mark.parametrize("path", LIBRARY, ids=ids)
def test_no_data_sets_name_in_the_library(path):
    """Docstrings and comments may name sources and projects; identifiers and texts may not."""
    tree = parsed(path)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, str) and id(node) not in texts and name != "kind":
                assert not DATASETS.search(value), f"line {getattr(node, 'lineno', '?')}: {value!r}"


@pytest.mark.parametrize("path", LIBRARY, ids=ids)
def test_every_public_name_is_documented(path):
    tree = parsed(path)
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} in {path.name}"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys; before = set(sys.modules); import common; print(*sorted(set(sys.modules) - before))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["common"]


def test_every_module_of_the_library_is_importable_with_the_promised_names():
    promised = {
        "unet": ["UNet", "ConditionalUNet"],
        "solvers": ["integrate", "time_grid", "CountNFE", "dopri5"],
        "couplings": ["couple"],
        "ema": ["EMA"],
        "checkpoint": ["save", "load", "load_network"],
        "metrics": ["frechet_distance", "wasserstein2", "sinkhorn_divergence", "mmd", "crps_ensemble"],
        "training": ["train"],
        "generate": ["sample_many"],
        "cli": ["parse"],
    }
    for path in LIBRARY:
        if path.stem != "__main__":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for place, names in promised.items():
        module = importlib.import_module(f"common.{place}")
        for name in names:
            assert callable(getattr(module, name)), f"{place}.{name}"


# ---- the rooms of common/


def test_the_rooms_stand_on_few_floors_without_a_circle(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "assets"))
    rooms = importlib.import_module("rooms")
    graph = rooms.arrows()
    assert len(graph) <= 24 and sum(map(len, graph.values())) <= 70
    assert max(rooms.floors(graph).values()) <= 7
    with pytest.raises(ValueError, match="a circle among a, b"):
        rooms.floors({"a": {"b"}, "b": {"a", "c"}, "c": set()})
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:common/)?([a-z_]+)(?:/|\.py)", page))
    assert graph.keys() <= named, "ARCHITECTURE.md leaves a room out"


# ---- documents


def commands(path: Path) -> list[str]:
    """The lines of a document that run one of our files."""
    text = path.read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", text)
    for block in re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, flags=re.DOTALL):
        spans += block.splitlines()
    parts = [part.split("#")[0].strip() for span in spans for part in span.removeprefix("$ ").split("&&")]
    wanted = re.compile(r"^(python3?|accelerate-launch|accelerate launch)\s+\S+\.py\b")
    return list(dict.fromkeys(part for part in parts if wanted.match(part)))


COMMANDS = [pytest.param(path, line, id=f"{ids(path)}: {line}") for path in DOCUMENTS for line in commands(path)] or [
    pytest.param(None, "", marks=pytest.mark.skip("no commands"))
]


def place_of(path: Path, line: str) -> tuple[Path | None, Path, list[str]]:
    """The script of a command, the folder that it is started from, and its words from the script's name on."""
    words = shlex.split(line)
    at = next(k for k, word in enumerate(words) if word.endswith(".py"))
    places = [path.parent / words[at], ROOT / words[at], ROOT / "cifar10" / words[at]]  # `cd cifar10 && ...`
    script = next((place for place in places if place.is_file()), None)
    return script, (script or path).parents[len(Path(words[at]).parts) - 1], words[at:]


HELP = """
import contextlib, io, json, os, runpy, sys, traceback
name, lines = json.load(sys.stdin)
sys.path[0] = os.path.dirname(os.path.abspath(name))
for flags in lines:
    sys.argv, code, errors = [name, *flags, "--help"], "it went on without help", io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(name, run_name="__main__")
        except SystemExit as left:
            code = left.code
        except Exception:
            traceback.print_exc()
    print(json.dumps([code, errors.getvalue()]))
"""


@functools.cache
def helped(where: Path, name: str) -> dict[tuple[str, ...], tuple[object, str]]:
    """How a script ends for the flags of each of its commands with --help: all in one process, which takes a while."""
    commands_ = [place_of(*command.values[:2]) for command in COMMANDS]
    lines = list(dict.fromkeys(tuple(words[1:]) for _, place, words in commands_ if (place, words[0]) == (where, name)))
    command, given = [sys.executable, "-c", HELP], json.dumps([name, lines])
    shown = subprocess.run(command, cwd=where, input=given, capture_output=True, text=True, timeout=60, check=True)
    return dict(zip(lines, map(json.loads, shown.stdout.splitlines()), strict=True))


@pytest.mark.parametrize(("path", "line"), COMMANDS)
def test_commands_of_documents_name_files_and_flags_that_exist(path, line):
    script, where, (name, *flags) = place_of(path, line)
    assert script is not None, f"{name} is not there"
    if script.parent in FOLDERS:
        code, errors = helped(where, name)[tuple(flags)]
        assert code == 0, errors or code


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_of_documents_exist(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not re.match(r"[a-z]+:", target) and not target.startswith("#"):
            assert (path.parent / target.split("#")[0]).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_python_in_documents_uses_names_that_exist(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "common":
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_requirements_name_every_package_that_the_library_imports():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    named = {re.split(r"[<>=~!\[ #]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    module_names = {"pillow": "PIL", "pyyaml": "yaml", "pot": "ot", "scikit-learn": "sklearn"}
    module_names |= {"pytorch-fid": "pytorch_fid"}
    known = {module_names.get(name, name) for name in named} | set(sys.stdlib_module_names) | {"common"}
    optional = {"wandb", "openmm", "PeptideBuilder", "mdtraj", "Bio"}  # asked for by one option, with a hint
    own = {path.stem for path in SCRIPTS} | {folder.name for folder in FOLDERS}
    used = {name for path in [*LIBRARY, *SCRIPTS] for name in tops(imports(parsed(path)))}
    assert not used - known - optional - own

"""The rules of the repository that a machine can check: who imports whom, what an import costs, links and commands."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from tiny import ROOT

LIBRARY = sorted((ROOT / "common").rglob("*.py"))
FOLDERS = sorted({path.parent for path in ROOT.glob("*/_repo.py")})
SCRIPTS = [path for folder in FOLDERS for path in sorted(folder.glob("*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
PARTS = [ROOT / name for name in sorted(os.listdir(ROOT)) if not name.startswith(".")]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *(path for part in PARTS for path in sorted(part.rglob("*.md")))]
FILES = [path for part in PARTS for suffix in ("py", "sh") for path in part.rglob(f"*.{suffix}")]

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
    "onnx",
    "onnxruntime",
    "optuna",
    "openmm",
    "xarray",
    "torchcfm",
}
# What --help needs, below common/: rooms and files that import no torch.
TORCH_FREE = re.compile(
    r"__init__\.py|(runtime|doctor|cli)/.*|scripts/(?!sampling|invert|sweep).*|records/(__init__|compare|page|rows)\.py|data/__init__\.py|.*/__main__\.py"
    r"|(prepare|export)/(__init__|command)\.py|evaluate/(__init__|options)\.py"
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


@functools.cache
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
    torch_free = TORCH_FREE.fullmatch(path.relative_to(ROOT / "common").as_posix())
    late = LATE if torch_free else LATE - {"PIL", "tqdm"}  # which nobody notices beside torch
    assert not early & late, "import it inside the function that needs it"
    if torch_free:
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
    doors = graph.keys() - set().union(*graph.values())  # commands: they only open inwards, nobody passes through
    house = {room: graph[room] for room in graph.keys() - doors}
    assert len(house) <= 20 and sum(map(len, house.values())) <= 60 and max(rooms.floors(house).values()) <= 7
    assert len(doors) <= 6 and all(len(graph[door]) <= 6 for door in doors)
    assert all((ROOT / "common" / door / "__main__.py").exists() for door in doors)
    with pytest.raises(ValueError, match="a circle among a, b"):
        rooms.floors({"a": {"b"}, "b": {"a", "c"}, "c": set()})
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:common/)?([a-z_]+)(?:/|\.py)", page))
    assert graph.keys() <= named, "ARCHITECTURE.md leaves a room out"


# ---- scripts


LONGEST = 80  # lines of a file that is run; those in benchmarks/ are free
LONGER = {
    "assets/make_figures.py": "every picture of the README, and the one use of their drawing",
    "assets/rooms.py": "the graph of imports and its picture, which nothing else needs",
}


def test_scripts_are_short():
    """Whoever opens one sees the whole; what is longer is in a module beside it, or here with its reason."""
    scripts = [path for path in FILES if path.suffix == ".py" and "__main__" in path.read_text(encoding="utf-8")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in scripts}
    long = {name for name, n in lines.items() if n > LONGEST and not name.startswith(("benchmarks/", "tests/"))}
    assert long <= LONGER.keys() and len(lines) > 40, long - LONGER.keys()


def test_every_script_reads_its_arguments():
    """One that did not would start its work at ``--help`` or at a mistyped flag."""
    reads = re.compile(r"\bparse\(|_main\(\w*FOLDER|\.parse_args\(|parse_with_extra\(")
    scripts = [path for path in FILES if path.suffix == ".py" and path.parts[-2] != "tests"]
    texts = {ids(path): path.read_text(encoding="utf-8") for path in scripts}
    deaf = [name for name, text in texts.items() if 'if __name__ == "__main__"' in text and not reads.search(text)]
    assert set(deaf) <= {"common/prepare/__main__.py"} and len(texts) > 100, deaf


# ---- documents


STARTS = re.compile(r"(python3?|accelerate-launch|accelerate launch|bash|sh|make|cd) \S|(\w+=\S+ )?\S+\.(py|sh)( |$)")
FENCES = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
Entry = tuple[str, str, tuple[str, ...]]  # folder, "script.py" or "-m module", flags


def commands(path: Path) -> list[str]:
    """The lines of a document that a reader may type, and the files that it names.

    Of a block that is not of another language these are all lines (those with a prompt, if there are any), of the text
    the spans that begin like a command.
    """
    text, lines = path.read_text(encoding="utf-8"), []
    for language, block in FENCES.findall(text):
        if language in ("", "bash", "sh", "console"):
            given = block.replace("\\\n", " ").splitlines()
            lines += [line[2:] for line in given if line.startswith("$ ")] or given
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCES.sub("", text))]
    lines += [span for span in spans if STARTS.match(span)]
    return list(dict.fromkeys(line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines) if line))


COMMANDS = [pytest.param(path, line, id=f"{ids(path)}: {line}") for path in DOCUMENTS for line in commands(path)]


def checked(path: Path, line: str) -> tuple[list[str], list[Entry]]:
    """What is wrong with a line of a document, and what of it is still to be asked for help, see :func:`helped`.

    The folders that it may be meant for are the document's own and the root; ``cd`` goes on from there.
    """
    folders, wrong, entries = [path.parent, ROOT], [], []
    for part in line.split("&&"):
        words = shlex.split(part)
        while re.match(r"\w+=", words[0]):  # the environment
            words = words[1:]
        if words[0] == "cd":
            folders = [folder / words[1] for folder in folders if (folder / words[1]).is_dir()]
            wrong += [] if folders else [f"no folder {words[1]}"]
            continue
        outcome = placed(folders, words)
        wrong += [outcome] if isinstance(outcome, str) and outcome else []
        entries += [outcome] if isinstance(outcome, tuple) else []
    return wrong, entries


def placed(folders: list[Path], words: list[str]) -> str | Entry:
    """Where a command is, if it has a --help of ours; else what is wrong with it, or nothing."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return "".join(f"make knows no {word}" for word in rest if word not in targets)
    if program == "pip":
        files = [file for flag, file in zip(rest, rest[1:]) if flag == "-r"]
        return "".join(f"{file} is not there" for file in files if not any((f / file).is_file() for f in folders))
    if program in ("python", "python3", "accelerate-launch", "accelerate"):
        if rest[:1] == ["-m"]:
            return module_of(folders, *rest[1:])
        rest = rest[next((k for k, word in enumerate(rest) if word.endswith(".py")), len(rest)) :]
    elif program not in ("bash", "sh"):
        rest = words
    if not rest or not rest[0].endswith((".py", ".sh")):
        return f"{shlex.join(words)}: nothing says what this is"
    return script_of(folders, rest, alone=rest == words)


def script_of(folders: list[Path], words: list[str], alone: bool) -> str | Entry:
    """A script, as in ``placed``; ``alone``: no interpreter is named before it."""
    name, *flags = words
    where = next((folder for folder in folders if (folder / name).is_file()), None)
    if where is None:
        named = alone and not flags and any(file.as_posix().endswith(f"/{name}") for file in FILES)
        return "" if named else f"{name} is not there"
    script = where / name
    if script.suffix == ".sh":
        if alone and not os.access(script, os.X_OK):
            return f"{name} cannot be executed: chmod +x"
        return subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr
    if script.resolve().parent in FOLDERS and (flags or not alone):
        return str(where), name, tuple(flags)
    parsed(script)
    return ""


def module_of(folders: list[Path], name: str, *flags: str) -> str | Entry:
    """A module that is run by its name, as in ``placed``."""
    inside = name.replace(".", "/")
    for folder in folders:
        if (folder / f"{inside}.py").is_file() or (folder / inside / "__main__.py").is_file():
            return str(folder), f"-m {name}", flags
    package = name.split(".")[0]
    third = not (ROOT / package).exists() and importlib.util.find_spec(package)
    return "" if third else f"no module {name} that can be run there"


HELP = """
import contextlib, functools, inspect, io, json, os, runpy, sys, traceback
import tyro
inspect.findsource, cli = functools.cache(inspect.findsource), tyro.cli
root, path, loaded, drawn = os.getcwd(), sys.path[1:], set(sys.modules), set()
for where, name, flags in json.load(sys.stdin):
    os.chdir(where)
    # what is drawn, once all flags are read, depends on the script and on where its options start
    starts = [flags[k : k + 2] for k, word in enumerate(flags) if word.split("=")[0] in ("--preset", "-c", "--config")]
    picture = json.dumps([where, name, starts])
    tyro.cli = cli if picture not in drawn else lambda *_, **__: None
    drawn.add(picture)
    module = name.startswith("-m ") and name[3:]
    sys.path[:] = [where if module else os.path.dirname(os.path.abspath(name)), *path]
    sys.argv, code, errors = [name, *flags, "--help"], "it went on without help", io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            if module:
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(name, run_name="__main__")
        except SystemExit as left:
            code = left.code
        except BaseException:
            traceback.print_exc()
    for own in set(sys.modules) - loaded:  # another folder's _repo, or what only one folder has on its path
        file = getattr(sys.modules[own], "__file__", None) or ""
        if file.startswith(root) and "site-packages" not in file and not own.startswith("common"):
            del sys.modules[own]
    print(json.dumps([code, errors.getvalue()]))
"""


def help_of(entries: list[Entry]) -> dict[Entry, tuple[object, str]]:
    """How scripts and modules end with the flags of a command and --help: all in one process, which takes a while."""
    command, given = [sys.executable, "-c", HELP], json.dumps(entries)
    shown = subprocess.run(command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=600, check=True)
    return dict(zip(entries, map(json.loads, shown.stdout.splitlines()), strict=True))


@functools.cache
def helped() -> dict[Entry, tuple[object, str]]:
    """``help_of`` all commands of the documents."""
    return help_of(list(dict.fromkeys(entry for command in COMMANDS for entry in checked(*command.values[:2])[1])))


@pytest.mark.parametrize(("path", "line"), COMMANDS)
def test_commands_of_documents_name_files_and_flags_that_exist(path, line):
    wrong, entries = checked(path, line)
    assert not wrong
    for entry in entries:
        code, errors = helped()[entry]
        assert code == 0, errors or code


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("python nowhere.py", "nowhere.py is not there"),
        ("accelerate-launch --num_processes 2 train_cifar10.py", "train_cifar10.py is not there"),
        ("nowhere.py", "nowhere.py is not there"),
        ("cd cifar10 && python mnist_test.py", "mnist_test.py is not there"),
        ("cd nowhere && make test", "no folder nowhere"),
        ("python -m common.nowhere", "no module common.nowhere"),
        ("cd cifar10 && python -m common.prepare", "no module common.prepare"),
        ("python -m nowhere", "no module nowhere"),
        ("make nothing", "make knows no nothing"),
        ("pip install -r nowhere.txt", "nowhere.txt is not there"),
        ("scripts/nowhere.sh", "scripts/nowhere.sh is not there"),
        ("bash scripts/nowhere.sh", "scripts/nowhere.sh is not there"),
        ("plain.sh", "plain.sh cannot be executed"),
        ("bash plain.sh", "syntax error"),
        ("curl https://example.org", "nothing says what this is"),
        ("OMP_NUM_THREADS=1 python", "nothing says what this is"),
    ],
)
def test_wrong_lines_of_documents_are_seen(tmp_path, line, match):
    (tmp_path / "plain.sh").write_text("if then\n")
    document = tmp_path / "README.md"
    document.write_text(f"```\n{line}  # a comment\n```\n")
    assert commands(document) == [line]
    wrong, entries = checked(document, line)
    assert wrong and match in wrong[0] and not entries


def test_wrong_flags_of_documents_are_seen():
    lines = {
        "python cifar10/measure.py --n_sample 3": "unknown flag --n_sample",
        "python -m common.prepare mnist.zip": "preset mnist.zip: choose one of",
    }
    for (code, errors), match in zip(
        help_of([checked(ROOT / "a.md", line)[1][0] for line in lines]).values(), lines.values()
    ):
        assert code == 2 and match in errors


def test_commands_in_blocks_prompts_and_spans_are_read(tmp_path):
    (tmp_path / "a.md").write_text(
        "Say `make\ntest` or `python a.py -n 2`, not `make` or `python`; `x.py` is a file.\n"
        "```python\nmake = python\n```\nprose\n```console\n$ bash b.sh\nits output\n```\n"
        "```bash\npython -m c \\\n  --flag\n\n# only a comment\n```\n"
    )
    expected = ["bash b.sh", "python -m c    --flag", "make test", "python a.py -n 2", "x.py"]
    assert commands(tmp_path / "a.md") == expected


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_of_documents_exist(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        name, _, part = target.partition("#")
        if not re.match(r"[a-z]+:", target):
            file = path.parent / name if name else path
            assert file.exists() and (not part or part in headings(file)), f"{path.name} links to {target}"


def headings(path: Path) -> list[str]:
    """The parts of a document that a link may name, as GitHub makes them of headings."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines]


def test_the_python_of_the_front_page_draws_a_picture(tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block.replace("16", "2"), names)  # so many images would take a core ten seconds
    assert names["images"].shape == (2, 3, 32, 32) and names["sampler"].solver == "fitted"
    with Image.open(tmp_path / "cifar10.png") as picture:
        assert picture.size[1] >= 32 and len(picture.getcolors(10_000) or []) > 100


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
    module_names |= {"pytorch-fid": "pytorch_fid", "protobuf": "google"}
    module_names |= {name: name.replace("-", "_") for name in named if name.startswith("efficientnet")}
    known = {module_names.get(name, name) for name in named} | set(sys.stdlib_module_names) | {"common"}
    optional = {
        "wandb",
        "openmm",
        "PeptideBuilder",
        "mdtraj",
        "Bio",
        "dysts",
        "reservoirpy",
    }  # asked for by one option, with a hint
    own = {path.stem for path in SCRIPTS} | {folder.name for folder in FOLDERS}
    used = {name for path in [*LIBRARY, *SCRIPTS] for name in tops(imports(parsed(path)))}
    assert not used - known - optional - own


# sys.argv: script, picture, and what is installed beside Python: all other packages are hidden from the script
BARE = r"""
import importlib.metadata as metadata, pathlib, re, runpy, sys
script, picture, *left = sys.argv[1:]
owners, there = metadata.packages_distributions(), set()
def normal(name): return re.sub("[-_.]+", "-", name).lower()
while left:
    if (name := normal(left.pop())) not in there:
        there.add(name)
        try: lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError: continue  # of another system
        left += [re.match(r"[\w.-]+", line)[0] for line in lines if "extra ==" not in line]
class Hidden:
    def find_spec(self, name, path=None, target=None):
        whose = {normal(owner) for owner in owners.get(name.split(".")[0], [])}
        if whose and not whose & there:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
sys.path.insert(0, str(pathlib.Path(script).parent))
sys.argv = [script, "--n_samples", "1", "--n_steps", "1", "--solver", "euler", "--out", picture]
runpy.run_path(script, run_name="__main__")
"""


def test_sampling_needs_nothing_but_the_demos_requirements(tmp_path):
    lines = (ROOT / "requirements-demo.txt").read_text(encoding="utf-8").splitlines()
    wanted = [re.split("[<>=~# ]", line)[0] for line in lines if line and not line.startswith("#")]
    command = [sys.executable, "-c", BARE, str(ROOT / "mnist" / "simple_gen_test.py"), str(tmp_path / "a.png"), *wanted]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and (tmp_path / "a.png").exists(), done.stderr[-2000:]


def test_the_wheel_holds_the_library_alone_and_asks_for_what_requirements_ask():
    pytest.importorskip("setuptools")
    from setuptools.config.pyprojecttoml import read_configuration

    config = read_configuration(ROOT / "pyproject.toml")
    rooms = {".".join(path.parent.relative_to(ROOT).parts) for path in LIBRARY}
    assert set(config["tool"]["setuptools"]["packages"]) == rooms
    lines = {line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    needed = config["project"]["dependencies"]
    assert set(needed) <= lines and set(config["project"]["optional-dependencies"]["effnet"]) <= lines
    early = {name for path in LIBRARY for name in tops(imports(parsed(path), at_import=True))}
    assert early <= {re.split("[<>=]", line)[0].lower() for line in needed} | set(sys.stdlib_module_names) | {
        "PIL",
        "common",
    }


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git is not asked where there is no repository")
def test_what_the_documents_commands_write_is_ignored_by_git():
    written = [
        *("cifar10/results/fm/x.pt", "cifar10/results/otcfm/config.yaml", "results/paper/x.json", "sst/runs/a/x.pt"),
        *("mnist/results/smoke-rf/x.pth", "mnist/flow_matching_mnist.pth", "mnist/samples/gen/000000.png"),
        *(
            "seqrf/exp/toy2d/table.csv",
            "celebA/checkpoints/rf_best.pth",
            "2D-toys/results/race/race.html",
            "cifar10/data/x",
        ),
    ]
    asked = subprocess.run(["git", "check-ignore", *written], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.stdout.split() == written


def test_the_sites_pages_are_the_documents():
    """``make docs`` checks their links, and is not run here; what is not in its navigation would not be found."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", text.partition("\nnav:\n")[2], flags=re.MULTILINE)
    documents = [path.relative_to(ROOT) for path in DOCUMENTS]
    ours = sorted(path.as_posix() for path in documents if path.parts[0] != "build")
    assert sorted(pages) == ours and len(pages) > 20
    assert "http" not in re.sub("python -m http.server", "", text), "the site is built without network"


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_asks_uv_for_the_torch_that_fits_and_then_for_the_usual_one(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements-demo.txt").touch()
    (tmp_path / ".venv").mkdir()
    uv, log = tmp_path / "bin" / "uv", tmp_path / "log"
    uv.parent.mkdir()
    uv.write_text(
        f'#!/bin/sh\necho "$1 $2 ${{UV_TORCH_BACKEND-unset}}" >> {log}\n[ "$1 $UV_TORCH_BACKEND" != "pip auto" ]\n'
    )
    uv.chmod(0o755)
    place = {"PATH": f"{uv.parent}{os.pathsep}{os.environ['PATH']}"}
    place |= {key: value for key, value in os.environ.items() if key not in ("PATH", "UV_TORCH_BACKEND")}
    subprocess.run(["make", ".venv/.demo"], cwd=tmp_path, env=place, check=True, capture_output=True)
    assert log.read_text().splitlines() == ["venv --quiet auto", "pip install auto", "pip install unset"]
    (tmp_path / ".venv" / ".demo").unlink()
    log.unlink()
    subprocess.run(["make", ".venv/.demo"], cwd=tmp_path, env={**place, "UV_TORCH_BACKEND": "cpu"}, check=True)
    assert log.read_text().splitlines()[-1] == "pip install cpu"

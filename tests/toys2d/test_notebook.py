"""The notebook of the plane: it runs top to bottom, and what is stored is small, complete and of no machine."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re

import pytest

from tiny import ROOT

NOTEBOOK = ROOT / "2D-toys" / "2D-toy-examples.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
TOPICS = ("What a flow is", "Conditional flow matching", "Optimal-transport", "reflow", "IDFF", "Solvers", "density")


def test_it_is_stored_with_its_outputs_and_small():
    assert NOTEBOOK.stat().st_size < 1_000_000
    outputs = [output for cell in CELLS if cell["cell_type"] == "code" for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 8 and not [output for output in outputs if output["output_type"] == "error"]
    counts = [cell["execution_count"] for cell in CELLS if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from the top"


def test_it_tells_nothing_of_the_machine_that_ran_it():
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(set(cell["metadata"]) <= {"tags"} for cell in CELLS)
    assert set(stored["metadata"]) == {"kernelspec", "language_info"}
    text = re.sub(r'"image/png": "[^"]*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert not re.search(r'(?:^|[\s"\'(=])/(?:[a-z]\w*)/|[A-Z]:\\\\|ipykernel_', text), "an absolute path"


def test_it_teaches_every_topic_with_equations():
    headings = [
        line for cell in CELLS if cell["cell_type"] == "markdown" for line in cell["source"] if line[:2] == "##"
    ]
    assert [topic for topic, heading in zip(TOPICS, headings) if topic not in heading] == []
    assert sum("$$" in "".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown") >= 5


def test_it_uses_names_that_exist():
    for source in CODE:
        for node in ast.walk(ast.parse(re.sub(r"^%.*$", "", source, flags=re.MULTILINE))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("common"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, a.name) or importlib.import_module(f"common.{a.name}") for a in node.names)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))), reason="needs nbclient and ipykernel"
)
@pytest.mark.filterwarnings("ignore")
def test_it_runs_top_to_bottom_on_a_small_budget(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("FLOW_NOTEBOOK_STEPS", "30")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    text = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert float(re.search(r"integral over the square: ([\d.]+)", text)[1]) == pytest.approx(1, abs=0.05)
    first, second = (float(s) for s in re.findall(r"(?:1st|2nd) flow straightness +([\d.]+)", text))
    assert second < first and "W2 at NFE 10: its sampler" in text
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 8

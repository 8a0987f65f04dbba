"""benchmarks/fewstep_gpu.py: weights in pieces, its command lines, and what it refuses before a minute is spent."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest

from tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import fewstep_gpu
import gpu
from fewstep_gpu import PARTS, SUITE, in_pieces, measuring, tuning


def test_pieces_put_together_are_the_file(tmp_path):
    file, out = tmp_path / "a_weights_step_final.pt", tmp_path / "out"
    file.write_bytes(bytes(range(256)) * 9)
    out.mkdir()
    (out / f"{file.name}.part-07").write_bytes(b"of an earlier run")
    names = in_pieces(file, out, size=1000)
    assert sorted(path.name for path in out.iterdir()) == names == [f"{file.name}.part-0{k}" for k in range(3)]
    assert max((out / name).stat().st_size for name in names) == 1000
    assert b"".join((out / name).read_bytes() for name in names) == file.read_bytes()


def test_the_weights_are_kept_before_anything_is_measured(tmp_path, monkeypatch):
    """Through stand-ins for the two scripts: what they are told, and where the results go."""
    told = []

    def script(*command):
        told.append([str(word) for word in command])
        if "train_cifar10" in told[-1][0]:
            run = tmp_path / "tuned"
            run.mkdir()
            row = {"loss": 2.0, "step": 3, "images_seen": 30, "seconds": 5.0, "skipped": 0, "waited_share": 0.0}
            (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            (run / "ECT_IDFF_weights_step_final.pt").write_bytes(b"weights")
        else:
            file = next(word for word in told[-1] if word.startswith("--out=")).removeprefix("--out=")
            with open(file, "w") as out:
                json.dump({"recognised": 0.5, "feature_distance": 1.25, "nfe": 2}, out)
        return ""

    for module in (gpu, fewstep_gpu):
        monkeypatch.setattr(module, "called", script)
    for name, value in {"OUT": tmp_path, "DATA": "real.zip", "MINUTES": "4", "FLAGS": "--lr 1e-3"}.items():
        monkeypatch.setenv(name, str(value))
    trained, weights = tuning("tune", False, tmp_path)
    assert trained["images_per_s"] == 6 and trained["loss"] == 2 and (trained["batch"], trained["steps"]) == (512, 3)
    assert weights["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert (tmp_path / weights["files"][0]).read_bytes() == b"weights"
    assert {"--minutes=4", "--method=ect_idff", f"--init={fewstep_gpu.WEIGHTS}", "--data=real.zip"} <= set(told[0])
    assert told[0][-2:] == ["--lr", "1e-3"] and fewstep_gpu.WEIGHTS.exists()
    (row,) = measuring("measure-tuned-2", False, tmp_path)
    assert row["what"] == "tuned, 2 NFE" and row["said"] == "50.0% recognised, feature distance 1.250"
    assert {"--solver=consistency", "--n_steps=2", f"--weights={tmp_path / 'tuned'}"} <= set(told[1])
    list(measuring("measure-before-4", False, tmp_path))
    assert {"--solver=euler", "--n_steps=4", f"--weights={fewstep_gpu.WEIGHTS}"} <= set(told[2])


def test_all_of_it_fits_into_nine_minutes(monkeypatch):
    monkeypatch.setenv("MINUTES", "5")
    assert PARTS["tune"].seconds(False) == 470 and PARTS["measure-tuned-1"].seconds(False) == 100
    assert [len(stage) for stage in gpu.stages(list(PARTS))] == [1, 6], "measured side by side, after the training"
    assert SUITE.total <= 540 and {"tune", "measure-tuned-2"} == set(SUITE.rehearsal)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "DATA is not set, see the head of fewstep_gpu.sh"),
        (("--minutes", "9"), "--minutes 9: above 0, and less than the 535 s of --seconds"),
        (("--minutes", "0"), "--minutes 0: above 0"),
    ],
)
def test_what_cannot_be_is_refused_at_once(flags, says, monkeypatch, capsys):
    parser = gpu.parser_of(SUITE)
    monkeypatch.setenv("MINUTES", "")  # which it sets, and which is put back
    monkeypatch.delenv("DATA", raising=False)
    with pytest.raises(SystemExit) as end:
        gpu.main(SUITE, parser.parse_args(flags), parser)
    assert end.value.code == 2 and says in capsys.readouterr().err

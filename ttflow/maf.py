"""POWER and GAS, the tables on which densities are compared since MAF, in its preprocessing and its split.

From MAF's data.tar.gz (zenodo.org/records/1161203), never fetched from here:

    power/data.npy       N x 8; the columns 1 and 3 are left out, rows shuffled and dequantised by RandomState(42)
    gas/data.npy         N x 16: the sensors of its ethylene_CO.pickle (see PICKLE); of columns with a correlation above
                         0.98 the first are left out, in the order of the file

or as other code leaves the same tables once preprocessed: power/ and gas/ with train.npy, val.npy, test.npy. The last
tenth is the test set, the last tenth of the rest the validation set; the columns are standardised, POWER's by training
and validation set, GAS's by all rows. Log-likelihoods in the literature are in these units.

Source: Papamakarios et al. 1705.07057, appendix D.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    Parts = tuple[np.ndarray, np.ndarray, np.ndarray]  # to fit, validation, test

COLUMNS = {"power": 6, "gas": 8}
ROWS = {"power": 2_049_280, "gas": 1_052_065}
SPLITS = ("train", "val", "test")
SENSORS = 16
ALIKE = 0.98
PICKLE = (
    'python -c "import numpy, pandas; '
    "f = pandas.read_pickle('ethylene_CO.pickle').drop(columns=['Meth', 'Eth', 'Time']); "
    "numpy.save('data.npy', f.to_numpy())\""
)


def load(name: str, root: str) -> Parts:
    """Rows to fit, validation and test rows of a table, (n, 6) or (n, 8) float32.

    Args:
        name: "power" or "gas".
        root: The folder that holds power/ and gas/.

    Raises:
        ValueError: no root, or a file that is not the one of this name.
        FileNotFoundError: no file; the line says which and where it is from.
    """
    import numpy as np

    if not root:
        raise ValueError(f"{name} needs --data-root FOLDER: the folder of MAF's data that holds {name}/")
    folder = Path(root).expanduser() / name
    if (folder / "data.npy").is_file():
        rows = _rows(folder / "data.npy", 8 if name == "power" else SENSORS)
        if len(rows) != ROWS[name]:
            said = f"{len(rows):,} rows, MAF's has {ROWS[name]:,}"
            print(f"{folder / 'data.npy'}: {said}: figures are not those of the literature")
        parts = _power(rows) if name == "power" else _gas(rows, folder / "data.npy")
    elif all((folder / f"{part}.npy").is_file() for part in SPLITS):
        train, validation, test = (_rows(folder / f"{part}.npy", COLUMNS[name]) for part in SPLITS)
        parts = train, validation, test
    else:
        raise FileNotFoundError(_absent(name, folder))
    train, validation, test = (part.astype(np.float32) for part in parts)
    return train, validation, test


def _absent(name: str, folder: Path) -> str:
    """What is not there, and how it comes there."""
    if name == "gas" and (folder / "ethylene_CO.pickle").is_file():
        return f"{folder / 'ethylene_CO.pickle'} is a pickle, which may run anything and is not read here: if you trust it, convert it once, in {folder}: {PICKLE}"  # noqa: E501
    of_gas = f", converted by: {PICKLE}" if name == "gas" else ""
    source = "unpack data.tar.gz of zenodo.org/records/1161203"
    inside = f"data/{name}/{'data.npy' if name == 'power' else 'ethylene_CO.pickle'}"
    return (
        f"no {folder / 'data.npy'}: {source}, it is its {inside}{of_gas}; or put train.npy, val.npy and test.npy there"
    )


def _rows(path: Path, columns: int) -> np.ndarray:
    """A table of numbers, float64.

    Raises:
        ValueError: something else.
    """
    import numpy as np

    from common.runtime import reading

    with reading(path, "unpack it again"):
        rows = np.load(path, allow_pickle=False)
        if rows.ndim != 2 or rows.shape[1] != columns or rows.dtype.kind not in "fiu":
            raise ValueError(f"it holds {rows.dtype} {rows.shape}, not numbers (N, {columns})")
    rows = rows.astype(np.float64)
    if len(rows) < 100 or not np.isfinite(rows).all():
        raise ValueError(f"{path}: {len(rows)} rows, or NaN among them: unpack it again")
    return rows


def _split(rows: np.ndarray) -> Parts:
    """The last tenth for the test, the last tenth of the others for validation."""
    rest, test = rows[: -int(0.1 * len(rows))], rows[-int(0.1 * len(rows)) :]
    return rest[: -int(0.1 * len(rest))], rest[-int(0.1 * len(rest)) :], test


def _power(rows: np.ndarray) -> Parts:
    """Active power, voltage, three meters and the minute of the day, with noise uniform in their last digits."""
    import numpy as np

    draw = np.random.RandomState(42)
    draw.shuffle(rows)
    rows = rows[:, [0, 2, 4, 5, 6, 7]]
    n = len(rows)
    voltage, power, meters = 0.01 * draw.rand(n, 1), 0.001 * draw.rand(n, 1), draw.rand(n, 3)  # drawn in this order
    train, validation, test = _split(rows + np.hstack([power, voltage, meters, np.zeros((n, 1))]))
    fitted = np.concatenate([train, validation])
    mean, std = fitted.mean(0), fitted.std(0)
    return (train - mean) / std, (validation - mean) / std, (test - mean) / std


def _gas(rows: np.ndarray, path: Path) -> Parts:
    """The sensors that are left once none is nearly another.

    Raises:
        ValueError: as many columns as the table of the literature are not left.
    """
    import numpy as np

    while (alike := (np.corrcoef(rows.T) > ALIKE).sum(1) > 1).any():
        rows = np.delete(rows, alike.argmax(), axis=1)
    if rows.shape[1] != COLUMNS["gas"]:
        left = f"{rows.shape[1]} sensors are left without correlations above {ALIKE}, MAF's table has {COLUMNS['gas']}"
        raise ValueError(f"{path}: {left}: this is another file, or not in its order")
    return _split((rows - rows.mean(0)) / rows.std(0, ddof=1))

"""Merge reflections with reciprocalspaceship: run by the Python that has it, which takes an older pandas than ours.

Called with a ``.npz`` file (`h`, `k`, `l`, `intensity`, `sigma`, `cell`, `space_group`) and the one to write.
"""

import sys

import gemmi
import numpy as np
import reciprocalspaceship as rs

told = np.load(sys.argv[1])
columns = {**{name.upper(): told[name] for name in "hkl"}, "I": told["intensity"], "SIGI": told["sigma"]}
cell, group = gemmi.UnitCell(*told["cell"].tolist()), gemmi.SpaceGroup(str(told["space_group"]))
table = rs.DataSet(columns, cell=cell, spacegroup=group, merged=False).infer_mtz_dtypes()
merged = rs.algorithms.merge(table.set_index(["H", "K", "L"]), anomalous=False, sort=True).reset_index()
np.savez(sys.argv[2], **{name: merged[name].to_numpy(np.float64) for name in ("H", "K", "L", "I", "SIGI", "N")})

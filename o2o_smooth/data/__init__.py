"""Experience: where it comes from and the forms in which it travels."""

from o2o_smooth.data.arrays import end_at_goal, from_arrays, from_npz
from o2o_smooth.data.batch import Batch, FloatArray, Transitions
from o2o_smooth.data.dataset import PROVENANCES, Dataset, check_fits, make_dataset
from o2o_smooth.data.generate import make_pointmaze_dataset, measure_references
from o2o_smooth.data.hdf5 import from_hdf5, write_hdf5
from o2o_smooth.data.minari_sets import from_minari
from o2o_smooth.data.sources import load_dataset, read_path

__all__ = [
    "PROVENANCES",
    "Batch",
    "Dataset",
    "FloatArray",
    "Transitions",
    "check_fits",
    "end_at_goal",
    "from_arrays",
    "from_hdf5",
    "from_minari",
    "from_npz",
    "load_dataset",
    "make_dataset",
    "make_pointmaze_dataset",
    "measure_references",
    "read_path",
    "write_hdf5",
]

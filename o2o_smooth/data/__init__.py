"""Experience: where it comes from and the forms in which it travels."""

from o2o_smooth.data.batch import Batch, FloatArray, Transitions
from o2o_smooth.data.generate import make_pointmaze_dataset, measure_references
from o2o_smooth.data.sources import Dataset, check_fits, from_arrays, from_minari, from_npz, load_dataset, make_dataset

__all__ = [
    "Batch",
    "Dataset",
    "FloatArray",
    "Transitions",
    "check_fits",
    "from_arrays",
    "from_minari",
    "from_npz",
    "load_dataset",
    "make_dataset",
    "make_pointmaze_dataset",
    "measure_references",
]

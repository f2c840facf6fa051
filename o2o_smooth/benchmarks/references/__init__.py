"""Published numbers, as data files: see README.md beside this file, and `o2o_smooth.benchmarks.published`."""

"""Native kernels under the learner; see build.py for how they come to be and cpu.py for what they do."""

"""Tasks, the environments they are played in, and scripted controllers that collect data."""

from o2o_smooth.envs.make import (
    TaskEnv,
    check_vectorizer,
    episode_success,
    final_observations,
    make_env,
    make_vector_env,
    obs_layout,
)
from o2o_smooth.envs.scripted import BEHAVIOUR, REFERENCE, ControllerSettings, WaypointController
from o2o_smooth.envs.table import register_table
from o2o_smooth.envs.tasks import Task, find_task, known_tasks, register_task, tasks_from_toml

__all__ = [
    "BEHAVIOUR",
    "REFERENCE",
    "ControllerSettings",
    "Task",
    "TaskEnv",
    "WaypointController",
    "check_vectorizer",
    "episode_success",
    "final_observations",
    "find_task",
    "known_tasks",
    "make_env",
    "make_vector_env",
    "obs_layout",
    "register_task",
    "tasks_from_toml",
]

register_table()

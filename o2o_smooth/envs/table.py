"""The rows of the task table: D4RL's tasks, and Minari's where its data were recorded in another environment.

Sources: reference scores and time limits from D4RL (d4rl/infos.py and the registrations of its environments).
"""

from __future__ import annotations

from o2o_smooth.envs.corridor import CORRIDOR_ID, STEPS, register_corridor
from o2o_smooth.envs.tasks import Task, register_task

_D4RL_SCORES = "D4RL (d4rl/infos.py): random policy and expert"
_SUCCESS = "by definition: the return is 1 if the goal is reached, else 0"
MUJOCO_TIERS = ("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay")
_MINARI_TIERS = ("medium", "expert")  # Minari has no random, replay or mixed tier

# Environment: id, score 0, score 100.
_MUJOCO = {
    "halfcheetah": ("HalfCheetah-v5", -280.178953, 12135.0),
    "hopper": ("Hopper-v5", -20.272305, 3234.3),
    "walker2d": ("Walker2d-v5", 1.629008, 4592.3),
    "ant": ("Ant-v5", -325.6, 3879.7),
}

# Maze: D4RL id, Minari name, environment, time limit, score 0, score 100. The scores were measured with
# `o2o_smooth.data.measure_references`: D4RL's do not transfer (its ref_max of 161.86 in UMaze stands against 244 here).
# Standard errors: at most 2.4 for score 0 and 2.7 for score 100, in units of return.
_POINTMAZE = (
    ("maze2d-open-v0", "open", "PointMaze_Open-v3", 150, 3.23, 94.55),
    ("maze2d-umaze-v1", "umaze", "PointMaze_UMaze-v3", 300, 13.56, 244.09),
    ("maze2d-medium-v1", "medium", "PointMaze_Medium-v3", 600, 10.55, 493.48),
    ("maze2d-large-v1", "large", "PointMaze_Large-v3", 800, 9.23, 638.63),
    ("maze2d-open-dense-v0", "open-dense", "PointMaze_OpenDense-v3", 150, 27.29, 103.06),
    ("maze2d-umaze-dense-v1", "umaze-dense", "PointMaze_UMazeDense-v3", 300, 63.49, 252.69),
    ("maze2d-medium-dense-v1", "medium-dense", "PointMaze_MediumDense-v3", 600, 57.66, 503.74),
    ("maze2d-large-dense-v1", "large-dense", "PointMaze_LargeDense-v3", 800, 44.85, 647.91),
)
_POINTMAZE_SOURCE = (
    "measured: uniform policy and scripted controller (gain 10, noise 0.2), 1000 episodes each, "
    "gymnasium-robotics 1.4.2, mujoco 3.11.0"
)

# D4RL's evaluation mazes: fixed start cell "r", fixed goal cell "g".
_UMAZE = ("#####", "#r..#", "###.#", "#g..#", "#####")
_UMAZE_MINARI = ("#####", "#g..#", "###.#", "#r..#", "#####")  # Minari's umaze set was recorded the other way round
_MEDIUM = ("########", "#r.##..#", "#..#...#", "##...###", "#..#...#", "#.#..#.#", "#...#.g#", "########")
_LARGE = (
    "############",
    "#r...#.....#",
    "#.##.#.#.#.#",
    "#......#...#",
    "#.####.###.#",
    "#..#.#.....#",
    "##.#.#.#.###",
    "#..#...#.g.#",
    "############",
)

# Maze: name, environment, time limit, map of D4RL's evaluation, map for Minari's set.
_ANTMAZE = (
    ("umaze", "AntMaze_UMaze-v4", 700, _UMAZE, _UMAZE_MINARI),
    ("umaze-diverse", "AntMaze_UMaze-v4", 700, _UMAZE, _UMAZE),
    ("medium-play", "AntMaze_Medium-v4", 1000, _MEDIUM, _MEDIUM),
    ("medium-diverse", "AntMaze_Medium_Diverse_GR-v4", 1000, _MEDIUM, _MEDIUM),
    ("large-play", "AntMaze_Large-v4", 1000, _LARGE, _LARGE),
    ("large-diverse", "AntMaze_Large_Diverse_GR-v4", 1000, _LARGE, _LARGE),
)


# Hand: environment, time limit, score 0, score 100.
_ADROIT = {
    "pen": ("AdroitHandPen-v1", 100, 96.262799, 3076.8331017826877),
    "hammer": ("AdroitHandHammer-v1", 200, -274.856578, 12794.134825156867),
    "door": ("AdroitHandDoor-v1", 200, -56.512833, 2880.5693087298737),
    "relocate": ("AdroitHandRelocate-v1", 200, -6.425911, 4233.877797728884),
}
_ADROIT_TIERS = ("human", "cloned", "expert")

# Kitchen: name, subtasks, time limit of Minari's set. D4RL registers all three with 280 steps.
_SLIDER = ("microwave", "kettle", "light switch", "slide cabinet")
_KITCHEN = (
    ("complete", _SLIDER, 280),
    ("partial", _SLIDER, 450),
    ("mixed", ("microwave", "kettle", "bottom burner", "light switch"), 450),
)
_KITCHEN_STEPS = 280
_KITCHEN_NOISE = {"robot_noise_ratio": 0.1, "object_noise_ratio": 0.1}  # D4RL's; gymnasium-robotics: 0.01 and 0.0005
_SUBTASKS = "by definition: the return is the number of finished subtasks, of 4"

CORRIDOR_KINDS = ("mixed", "medium", "narrow")
_CORRIDOR = (3.65, 271.1)  # score 0, score 100
_CORRIDOR_SOURCE = (
    "uniform policy and scripted controller (speed 3, noise 0.02); over 100,000 episodes each they earn 3.83 and "
    "271.18, with standard errors of 0.01 and 0.003"
)


def _mujoco_task(name: str, tier: str) -> Task:
    env_id, ref_random, ref_expert = _MUJOCO[name]
    minari = (f"mujoco/{name}/{tier}-v0",) if tier in _MINARI_TIERS else ()
    return Task(
        id=f"{name}-{tier}-v2",
        env_id=env_id,
        domain="mujoco",
        dataset_ids=(*minari, f"o2o-smooth/{name}/{tier}-v0"),
        max_episode_steps=1000,
        ref_random=ref_random,
        ref_expert=ref_expert,
        ref_source=_D4RL_SCORES,
        # The contact forces that follow are zero in D4RL (111 columns) and not in Minari's sets (105).
        obs_width=27 if name == "ant" else None,
        env_kwargs={"include_cfrc_ext_in_observation": False} if name == "ant" else {},
    )


def _pointmaze_task(row: tuple[str, str, str, int, float | None, float | None]) -> Task:
    d4rl_id, name, env_id, steps, ref_random, ref_expert = row
    return Task(
        id=f"D4RL/pointmaze/{name}-v2",
        env_id=env_id,
        domain="pointmaze",
        dataset_ids=(f"D4RL/pointmaze/{name}-v2", f"o2o-smooth/pointmaze/{name}-v0"),
        max_episode_steps=steps,
        ref_random=ref_random,
        ref_expert=ref_expert,
        ref_source=_POINTMAZE_SOURCE,
        obs_keys=("observation", "desired_goal"),
        env_kwargs={"continuing_task": True, "reset_target": False},  # the goal stays, and so does its reward
        aliases=(d4rl_id,),
    )


def _antmaze_task(name: str, env_id: str, steps: int, maze: tuple[str, ...], minari: bool) -> Task:
    cells = {"#": 1, ".": 0}
    dataset_id = f"D4RL/antmaze/{name}-v1"
    return Task(
        id=dataset_id if minari else f"antmaze-{name}-v2",
        env_id=env_id,
        domain="antmaze",
        dataset_ids=(dataset_id,) if minari else (),
        max_episode_steps=steps,
        ref_random=0.0,
        ref_expert=1.0,
        ref_source=_SUCCESS,
        reward_shift=-1.0,
        obs_keys=("achieved_goal", "observation", "desired_goal"),
        action_scale=1.0 if minari else 0.2,  # D4RL's gear is 30, gymnasium's 150, with which Minari's sets were made
        goal_reward=1.0,
        env_kwargs={
            "maze_map": [[cells.get(cell, cell) for cell in row] for row in maze],
            "continuing_task": False,  # ends at the goal
            "reset_target": False,
        },
    )


def _adroit_task(hand: str, tier: str) -> Task:
    env_id, steps, ref_random, ref_expert = _ADROIT[hand]
    return Task(
        id=f"{hand}-{tier}-v1",
        env_id=env_id,
        domain="adroit",
        dataset_ids=(f"D4RL/{hand}/{tier}-v2",),
        max_episode_steps=steps,
        ref_random=ref_random,
        ref_expert=ref_expert,
        ref_source=_D4RL_SCORES,
        compat="adroit",
    )


def _kitchen_task(name: str, subtasks: tuple[str, ...], steps: int, minari: bool) -> Task:
    dataset_id = f"D4RL/kitchen/{name}-v2"
    return Task(
        id=dataset_id if minari else f"kitchen-{name}-v0",
        env_id="FrankaKitchen-v1",
        domain="kitchen",
        dataset_ids=(dataset_id,),
        max_episode_steps=steps,
        ref_random=0.0,
        ref_expert=4.0,
        ref_source=_SUBTASKS,
        env_kwargs={"tasks_to_complete": list(subtasks), **({} if minari else _KITCHEN_NOISE)},
        compat="kitchen",
    )


def _corridor_task(kind: str) -> Task:
    return Task(
        id=f"corridor-{kind}-v0",
        env_id=CORRIDOR_ID,
        domain="corridor",
        dataset_ids=(f"o2o-smooth/corridor/{kind}-v0",),
        max_episode_steps=STEPS,
        ref_random=_CORRIDOR[0],
        ref_expert=_CORRIDOR[1],
        ref_source=_CORRIDOR_SOURCE,
    )


def register_table() -> None:
    """Make the rows known."""
    for name in _MUJOCO:
        for tier in MUJOCO_TIERS:
            register_task(_mujoco_task(name, tier))
    for name, env_id, steps, maze, maze_minari in _ANTMAZE:
        register_task(_antmaze_task(name, env_id, steps, maze, minari=False))
        register_task(_antmaze_task(name, env_id, steps, maze_minari, minari=True))
    for hand in _ADROIT:
        for tier in _ADROIT_TIERS:
            register_task(_adroit_task(hand, tier))
    for name, subtasks, steps in _KITCHEN:
        register_task(_kitchen_task(name, subtasks, _KITCHEN_STEPS, minari=False))
        register_task(_kitchen_task(name, subtasks, steps, minari=True))
    for row in _POINTMAZE:
        register_task(_pointmaze_task(row))
    register_corridor()
    for kind in CORRIDOR_KINDS:
        register_task(_corridor_task(kind))

"""Settings of switch hygiene that do not fit are refused by their names."""

from __future__ import annotations

from typing import Any

import pytest

from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import AnchorConfig, AveragingConfig, HygieneConfig
from o2o_smooth.training.hygiene import require_fits
from tests.training.test_graphed import make_agent


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HygieneConfig(warm_up_steps=-1), "warm_up_steps must not be negative"),
        (lambda: HygieneConfig(critic_first_updates=-1), "critic_first_updates must not"),
        (lambda: HygieneConfig(rewarm_updates=-1), "rewarm_updates must not"),
        (lambda: HygieneConfig(reset_optimizer="actor,critik"), "reset_optimizer takes .* 'critik'"),
        (lambda: HygieneConfig(reset_optimizer=""), "reset_optimizer takes"),
        (lambda: HygieneConfig(switch_temperature="keep"), "switch_temperature must be"),  # type: ignore[arg-type]
        (lambda: AnchorConfig(anchor_kl=-1.0), "anchor_kl must be"),
        (lambda: AnchorConfig(anchor_l2=float("nan")), "anchor_l2 must be"),
        (lambda: AnchorConfig(anchor_ewc=float("inf")), "anchor_ewc must be"),
        (lambda: AnchorConfig(anchor_kl=1.0, anchor_kl_decay=0.0), "anchor_kl_decay must lie"),
        (lambda: AnchorConfig(anchor_bc=1.0, anchor_bc_decay=1.1), "anchor_bc_decay must lie"),
        (
            lambda: AnchorConfig(anchor_bc=1.0, anchor_bc_floor=2.0),
            r"anchor_bc_floor must not be above anchor_bc \(1\)",
        ),
        (lambda: AnchorConfig(anchor_kl_floor=0.1), "anchor_kl_floor must not be above"),
        (lambda: AnchorConfig(anchor_kl_decay=0.9), "anchor_kl_decay has no effect"),
        (lambda: AnchorConfig(anchor_ewc_rows=0), "anchor_ewc_rows must be"),
        (lambda: AnchorConfig(anchor_parts="value"), "anchor_parts must be"),  # type: ignore[arg-type]
        (lambda: AveragingConfig(sfa_period=1.5), "sfa_period must lie"),
        (lambda: AveragingConfig(sfa_share=-0.1), "sfa_share must lie"),
        (lambda: AveragingConfig(sfa_parts="both"), "sfa_parts must be"),  # type: ignore[arg-type]
        (lambda: AveragingConfig(ema_decay=1.0), "ema_decay must lie"),
    ],
)
def test_a_bad_value_names_its_setting(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_what_an_agent_does_not_have_is_refused_before_anything_is_trained() -> None:
    iql, td3 = make_agent("iql", "sac"), make_agent("td3_bc", "td3")
    for agent, hygiene, anchors, words in (
        (
            td3,
            HygieneConfig(switch_temperature="reset"),
            AnchorConfig(),
            "td3_bc with online objective td3 has no temp",
        ),
        (td3, HygieneConfig(reset_optimizer="actor,value"), AnchorConfig(), "has no value; it has actor, critic"),
        (iql, HygieneConfig(), AnchorConfig(anchor_bc=1.0), "anchor_bc needs offline rows"),
        (iql, HygieneConfig(), AnchorConfig(anchor_ewc=1.0), "anchor_ewc needs offline rows"),
    ):
        with pytest.raises(ConfigError, match=words):
            require_fits(agent, hygiene, anchors, offline_rows=False)
    require_fits(td3, HygieneConfig(reset_optimizer="all"), AnchorConfig(anchor_kl=1.0), offline_rows=False)

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from o2o_smooth.smoothing import COMPONENTS, Mix, Term, blend
from o2o_smooth.smoothing.objective import (
    Kind,
    Mode,
    effective_weight,
    match_gradients,
    member_dots,
    member_norms,
    project_gradients,
    raw_weight,
    wanted,
)


def term(*values: float) -> Term:
    return Term(torch.tensor(values, dtype=torch.float64, requires_grad=True), {})


def gradients(seed: int, members: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn((members, *shape), generator=generator, dtype=torch.float64) * (seed + 1)
        for shape in ((2, 4, 3), (5,), ())
    ]


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def flat(parts: list[Tensor]) -> Floats:
    return np.concatenate([p.reshape(len(p), -1).numpy() for p in parts], axis=1)


@pytest.mark.parametrize(
    ("weight", "kind"),
    [
        ([0.0, 0.0], "offline"),
        ([1.0, 1.0], "online"),
        ([0.5, 0.5], "mixed"),
        ([0.0, 1.0], "mixed"),
        ([0.0, 1e-300], "mixed"),
        ([1.0, 1.0 - 1e-16], "mixed"),
    ],
)
def test_component_is_mixed_as_soon_as_any_member_needs_both(weight: list[float], kind: Kind) -> None:
    assert Mix({"actor": np.array(weight)}).kind("actor") == kind


def test_only_mixed_weights_become_tensors_in_the_dtype_asked_for() -> None:
    mix = Mix({"actor": np.array([0.25, 0.0]), "critic": np.ones(2), "value": np.zeros(2)})
    tensors = mix.tensors(torch.zeros(1, dtype=torch.float64))
    assert list(tensors) == ["actor"]
    assert tensors["actor"].dtype == torch.float64
    assert tensors["actor"].tolist() == [0.25, 0.0]


def test_uniform_mix_gives_every_component_and_member_the_weight() -> None:
    mix = Mix.uniform(0.25, 3)
    assert tuple(mix.weights) == COMPONENTS
    assert all(w.tolist() == [0.25] * 3 for w in mix.weights.values())


@pytest.mark.parametrize("weight", [-1e-9, 1.0 + 1e-9, float("nan"), float("inf")])
def test_weight_out_of_range_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weight of critic must lie in \[0, 1\]"):
        Mix({"actor": np.zeros(2), "critic": np.array([0.0, weight])})


def test_unknown_mode_and_impossible_share_are_refused() -> None:
    with pytest.raises(ValueError, match="loss, target, matched, projected, got 'sum'"):
        Mix.uniform(0.0, mode=cast(Mode, "sum"))
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="offline_fraction"):
            Mix({"actor": np.zeros(1)}, offline_fraction=share)


def test_components_without_weight_are_not_wanted() -> None:
    kinds: dict[str, Kind] = {"actor": "mixed", "critic": "offline", "value": "online"}
    components = ("value", "critic", "actor")
    assert wanted(components, kinds, "offline") == {"actor", "critic"}
    assert wanted(components, kinds, "online") == {"actor", "value"}
    assert wanted(("actor",), kinds, "online") == {"actor"}


def test_blend_weighs_each_member_by_its_own_weight() -> None:
    losses = blend(
        {"actor": term(1.0, 2.0, 4.0)},
        {"actor": term(10.0, 20.0, 40.0)},
        {"actor": torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)},
        {"actor": "mixed"},
    )
    assert losses["actor"].tolist() == [1.0, 6.5, 40.0]


def test_component_of_one_side_fades_with_its_weight() -> None:
    w = torch.tensor([0.0, 0.25], dtype=torch.float64)
    losses = blend(
        {"value": term(8.0, 8.0)},
        {"temperature": term(4.0, 4.0)},
        {"value": w, "temperature": w},
        {"value": "mixed", "temperature": "mixed"},
    )
    assert losses["value"].tolist() == [8.0, 6.0]
    assert losses["temperature"].tolist() == [0.0, 1.0]


def test_pure_component_is_the_sides_own_tensor_or_absent() -> None:
    offline, online = {"actor": term(1.0), "value": term(2.0)}, {"actor": term(3.0), "temperature": term(4.0)}
    kinds: dict[str, Kind] = dict.fromkeys(("actor", "value", "temperature"), "offline")
    losses = blend(offline, online, {}, kinds)
    assert set(losses) == {"actor", "value"}
    assert losses["actor"] is offline["actor"].loss
    losses = blend(offline, online, {}, dict.fromkeys(kinds, "online"))
    assert set(losses) == {"actor", "temperature"}
    assert losses["actor"] is online["actor"].loss


def test_norms_and_dots_are_per_member_over_all_parameters() -> None:
    a, b = gradients(0), gradients(1)
    np.testing.assert_allclose(member_norms(a).numpy(), np.linalg.norm(flat(a), axis=1), rtol=1e-14)
    np.testing.assert_allclose(member_dots(a, b).numpy(), (flat(a) * flat(b)).sum(1), rtol=1e-12)


def test_matched_gradients_have_the_documented_norm() -> None:
    offline, online = gradients(0), [1000 * g for g in gradients(1)]
    w = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    n_off, n_on = (np.linalg.norm(flat(g), axis=1)[:, None] for g in (offline, online))
    share = w.numpy()[:, None]
    common = (1 - share) * n_off + share * n_on
    wanted = common * ((1 - share) * flat(offline) / n_off + share * flat(online) / n_on)
    np.testing.assert_allclose(flat(match_gradients(offline, online, w)), wanted, rtol=1e-12)


def test_matched_gradients_at_the_ends_are_the_pure_ones_exactly() -> None:
    offline = [g.float() for g in gradients(0)]
    online = [g.float() for g in gradients(1)]
    matched = match_gradients(offline, online, torch.tensor([0.0, 1.0, 0.5]))
    for g, off, on in zip(matched, offline, online, strict=True):
        assert torch.equal(g[0], off[0])
        assert torch.equal(g[1], on[1])
        assert not torch.equal(g[2], on[2])


def test_matched_gradients_at_the_ends_are_pure_even_where_a_norm_under_or_overflows() -> None:
    tiny, huge = [torch.full((2, 3), 1e-25)], [torch.full((2, 3), 1e25)]
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(match_gradients(tiny, huge, ends)[0], torch.stack([tiny[0][0], huge[0][1]]))
    assert torch.equal(match_gradients(huge, tiny, ends)[0], torch.stack([huge[0][0], tiny[0][1]]))


def pcgrad(a: Floats, b: Floats, w: float) -> Floats:
    """Algorithm 1 of the paper, word for word, for two flat gradients of weighted losses."""
    tasks = [(1 - w) * a, w * b]
    projected = []
    for i, own in enumerate(tasks):
        g, other = own.copy(), tasks[1 - i]
        if g @ other < 0:
            g = g - (g @ other) / (other @ other) * other
        projected.append(g)
    return projected[0] + projected[1]


def test_projected_gradients_are_pcgrads() -> None:
    offline, online = gradients(0, members=6), gradients(1, members=6)
    flipped = [-g for g in online]
    w = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.999], dtype=torch.float64)
    conflicts = 0
    for other in (online, flipped):
        found = flat(project_gradients(offline, other, w))
        for m in range(6):
            a, b = flat(offline)[m], flat(other)[m]
            np.testing.assert_allclose(found[m], pcgrad(a, b, float(w[m])), rtol=1e-12, atol=1e-13)
            conflicts += int(a @ b < 0)
    assert conflicts == 6  # each member's pair conflicts one way and agrees the other


def test_projected_step_worsens_neither_loss() -> None:
    offline, online = gradients(0), [-g + 0.1 * h for g, h in zip(gradients(0), gradients(1), strict=True)]
    w = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    step = project_gradients(offline, online, w)
    assert (member_dots(offline, online) < 0).all()
    assert (member_dots(step, offline) > 0).all()
    assert (member_dots(step, online) > 0).all()


def test_projected_gradients_at_the_ends_are_the_pure_ones_exactly() -> None:
    offline, online = [g.float() for g in gradients(0)], [-g.float() for g in gradients(0)]
    projected = project_gradients(offline, online, torch.tensor([0.0, 1.0, 0.5]))
    for g, off, on in zip(projected, offline, online, strict=True):
        assert torch.equal(g[0], off[0])
        assert torch.equal(g[1], on[1])
        torch.testing.assert_close(g[2], torch.zeros_like(g[2]), rtol=0, atol=1e-6)  # opposed: nothing is left


def test_zero_gradient_projects_nothing() -> None:
    zero, other = [torch.zeros(3, 4)], [torch.full((3, 4), -2.0)]
    w = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(project_gradients(zero, other, w)[0], w[:, None] * other[0])
    torch.testing.assert_close(project_gradients(other, zero, w)[0], (1 - w)[:, None] * other[0])


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4, 1e12])
def test_zero_gradient_stays_zero_whatever_the_other_ones_size(size: float) -> None:
    zero = [torch.zeros(4, 3)]
    other = [torch.full((4, 3), size)]
    w = torch.tensor([0.0, 0.25, 0.75, 1.0])
    norm = size * 3**0.5
    for share, matched in ((w, match_gradients(zero, other, w)), (1 - w, match_gradients(other, zero, w))):
        # the common norm shrinks with the share too
        expected = torch.where(share == 1, norm, share * share * norm)
        torch.testing.assert_close(matched[0].norm(dim=1), expected)
    assert all(torch.equal(g, zero[0]) for g in match_gradients(zero, zero, w))


weights = st.floats(0.0, 1.0)
norms = st.floats(1e-6, 1e6)


@given(weights, norms, norms)
def test_raw_weight_inverts_effective_weight(w: float, offline: float, online: float) -> None:
    wanted, n_off, n_on = np.array([w]), np.array([offline]), np.array([online])
    solved = raw_weight(wanted, n_off, n_on)
    assert 0.0 <= solved[0] <= 1.0
    np.testing.assert_allclose(effective_weight(solved, n_off, n_on), wanted, rtol=1e-3, atol=1e-12)


def test_effective_weight_of_a_tenfold_norm() -> None:
    one, ten = np.array([1.0]), np.array([10.0])
    assert effective_weight(np.array([0.5]), ten, one)[0] == pytest.approx(1 / 11)
    assert raw_weight(np.array([0.5]), ten, one)[0] == pytest.approx(10 / 11)  # study.md: balance at w = 0.91


@given(norms, norms)
def test_effective_and_raw_weight_are_exact_at_the_ends(offline: float, online: float) -> None:
    ends, n_off, n_on = np.array([0.0, 1.0]), np.full(2, offline), np.full(2, online)
    assert effective_weight(ends, n_off, n_on).tolist() == [0.0, 1.0]
    assert raw_weight(ends, n_off, n_on).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("offline", "online"), [(0.0, 0.0), (0.0, 3.0), (3.0, 0.0), (np.nan, 3.0), (3.0, np.inf), (np.inf, np.inf)]
)
def test_raw_weight_without_a_usable_gradient_is_the_wanted_one(offline: float, online: float) -> None:
    wanted = np.array([0.0, 0.3, 1.0])
    assert raw_weight(wanted, np.full(3, offline), np.full(3, online)).tolist() == [0.0, 0.3, 1.0]


def test_effective_weight_is_the_weight_where_both_gradients_vanish() -> None:
    assert effective_weight(np.array([0.3]), np.zeros(1), np.zeros(1)).tolist() == [0.3]
    assert effective_weight(np.array([0.3]), np.ones(1), np.zeros(1)).tolist() == [0.0]

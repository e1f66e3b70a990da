"""Any refinement follows any strategy, or says which not."""

from functools import lru_cache

import pytest
import torch
from matrix import REFINEMENTS, ROWS, TIMESTEPS, convert
from networks import MaxPoolNetwork, ResidualNetwork, make_images, make_network, recorded

import snn_lowlat
from snn_lowlat.simulation import simulate

NETWORKS = [ResidualNetwork, MaxPoolNetwork]
FOLLOWED = [(refinement, row) for refinement, rows in REFINEMENTS.items() for row in rows]
REFUSED = [(refinement, row) for refinement in REFINEMENTS for row in ROWS if (refinement, row) not in FOLLOWED]


@lru_cache
def unrefined(row, kind):
    return convert(row, kind, refinements=[])


def test_every_registered_refinement_has_a_row():
    assert set(snn_lowlat.refinements()) == set(REFINEMENTS)


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("refinement", "row"), FOLLOWED)
def test_it_follows_the_strategy(refinement, row, kind):
    """It corrects numbers, never the graph, and what comes out is a network as any other."""
    given, images = unrefined(row, kind), make_images(5)
    refined, again = (convert(row, kind, refinements=[refinement]) for _ in range(2))
    (graph, plan), (before, _) = refined.normal_form(), given.normal_form()
    assert [step["name"] for step in refined.provenance.refinements] == [refinement]
    assert str(graph.graph) == str(before.graph)
    assert plan.keys() == given.plan.keys()
    if [site.neuron for site in plan.values()] == [site.neuron for site in given.plan.values()]:
        assert refined.latency_steps == given.latency_steps
    changed = any(not torch.equal(value, before.state_dict()[name]) for name, value in graph.state_dict().items())
    assert changed or plan != given.plan
    assert again.plan == plan
    assert torch.equal(again(images), refined(images))
    outputs, spikes = simulate(graph, plan, images.expand(TIMESTEPS, *images.shape))
    torch.testing.assert_close(refined.simulate(images), outputs.mean(0), rtol=1e-5, atol=1e-6)
    for name, values in recorded(refined, images, steps=True)[1].items():
        assert torch.equal(values, spikes[name].flatten(2)), name


@pytest.mark.parametrize(("refinement", "row"), REFUSED)
def test_it_refuses_the_strategy_in_words(refinement, row):
    with pytest.raises(ValueError, match=rf"{refinement} .*: choose a strategy .*such as value_range"):
        convert(row, MaxPoolNetwork, refinements=[refinement])


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("row", ROWS)
def test_bias_correction_mends_the_mean_of_the_readout(row, kind):
    with torch.no_grad():
        expected = make_network(kind)(make_images()).mean(0)
    torch.testing.assert_close(convert(row, kind)(make_images()).mean(0), expected, rtol=1e-4, atol=1e-5)

"""One schedule and one walk: what is computed, what is constant in time, what max-pools do, and what is let go when."""

import operator

import pytest
import torch
from torch import nn

from snn_lowlat.graph import Schedule, Walk, find_sites, normalise, with_per_step_max_pools
from snn_lowlat.neurons import max_pool_window

T, N = 3, 2


class Network(nn.Module):
    """A pool of what the image decides, a pool of what neurons decide, and a sum of both kinds in front of neurons."""

    def __init__(self):
        super().__init__()
        self.stem, self.skip, self.deep = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1)
        self.pool, self.average, self.linear = nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Linear(16, 3)

    def forward(self, x):
        fired = torch.clamp(self.pool(self.stem(x)), 0, 1)
        pooled = self.pool(self.deep(fired))
        return self.linear(torch.relu(pooled + self.average(self.pool(self.skip(x)))).flatten(1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return normalise(Network().eval(), torch.rand(N, 1, 8, 8))


class Alternating(Walk):
    """Neurons that send their current, times the number of the step."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen, self.most = {}, 0

    def neurons(self, site, terms):
        current = terms[0] if len(terms) == 1 else operator.add(*terms)
        self.seen[site.name] = [term.shape[0] for term in terms]
        current = current if self.varies(site.node) else self.each_step(current)
        steps = torch.arange(self.timesteps).repeat_interleave(N) - 1.0
        return current * steps.view(-1, *[1] * (current.dim() - 1))

    def put(self, node, value):
        super().put(node, value)
        self.most = max(self.most, len(self.values))


def pools(schedule):
    return [node for node, module in schedule.modules.items() if isinstance(module, nn.MaxPool2d)]


def test_a_schedule_knows_what_no_neurons_decide(graph):
    schedule = Schedule(graph)
    first, second = schedule.sites.values()
    constant = [node in schedule.before_neurons for node in (schedule.input, first.current, first.node, second.current)]
    assert constant == [True, True, False, False]
    assert sorted(node in schedule.before_neurons for node in pools(schedule)) == [False, True, True]
    assert schedule.nodes[-1].op == "output"
    assert not any(node.op in ("placeholder", "get_attr") for node in schedule.nodes)
    assert schedule.taken_over == set(first.rest) != set()


def test_every_value_is_let_go_once(graph):
    schedule = Schedule(graph)
    let_go = [before for node in schedule.nodes for before in schedule.read_last[node]]
    assert len(let_go) == len(set(let_go))
    assert {schedule.input, *schedule.nodes} - set(let_go) == {schedule.nodes[-1]}
    walk = Alternating(schedule, T)
    walk.run(torch.rand(T * N, 1, 8, 8))
    assert not walk.values
    assert walk.most < len(schedule.nodes) / 2


def test_what_is_constant_in_time_is_computed_once_and_changes_nothing(graph):
    schedule, images = Schedule(graph), torch.rand(N, 1, 8, 8)
    once, each = Alternating(schedule, T, constant=True), Alternating(schedule, T)
    torch.testing.assert_close(once.run(images), each.run(images.repeat(T, 1, 1, 1)))
    first, second = (site.name for site in schedule.sites.values())
    assert (once.seen[first], once.seen[second]) == ([N], [T * N])
    assert (each.seen[first], each.seen[second]) == ([T * N], [T * N])


def test_sums_may_be_left_to_neurons(graph):
    _, site = find_sites(graph).values()
    schedule = Schedule(graph, sums={site.node: site.current.all_input_nodes})
    assert site.current not in schedule.nodes
    images = torch.rand(N, 1, 8, 8)
    whole, left = Alternating(Schedule(graph), T, constant=True), Alternating(schedule, T, constant=True)
    assert torch.equal(left.run(images), whole.run(images))
    assert left.seen[site.name] == [T * N, T * N]  # the one that is constant in time, for each step


@pytest.mark.parametrize("per_step", [False, True])
def test_max_pools_pool_running_sums_where_currents_vary_in_time_alone(graph, per_step):
    graph = with_per_step_max_pools(graph) if per_step else graph
    schedule, currents = Schedule(graph), torch.randn(T * N, 4, 8, 8)
    for node in pools(schedule):
        pool = schedule.modules[node]
        over_time, plain = max_pool_window(pool, currents, T), pool(currents)
        assert torch.equal(over_time, plain) == per_step
        assert torch.equal(Walk(schedule, T).max_pool(node, currents), over_time)
        # Counts and means over the window are one step.
        assert torch.equal(Walk(schedule).max_pool(node, currents), plain)
        varies = node not in schedule.before_neurons
        found = Walk(schedule, T, constant=True).max_pool(node, currents)
        assert torch.equal(found, over_time if varies else plain)

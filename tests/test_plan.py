import copy
import pickle

import pytest
import torch

from snn_lowlat import SitePlan


def test_values_are_copied_and_compared():
    threshold = torch.ones(3)
    plan = SitePlan(threshold, torch.zeros(()), threshold, parameters={"gap": 2.0})
    threshold.add_(1)
    assert torch.equal(plan.threshold, torch.ones(3))
    for same in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert same == plan
    assert plan != SitePlan(torch.ones(3), torch.zeros(()), torch.ones(3))
    with pytest.raises(TypeError):
        plan.parameters["gap"] = 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((torch.zeros(()), torch.zeros(()), torch.ones(())), "threshold must be positive"),
        ((torch.ones(()), torch.zeros(()), -torch.ones(())), "amplitude must be positive"),
        ((torch.tensor(float("nan")), torch.zeros(()), torch.ones(())), "threshold must be finite"),
        ((torch.ones(()), torch.tensor(float("inf")), torch.ones(())), "initial_potential must be finite"),
        ((torch.ones(2, 2), torch.zeros(()), torch.ones(())), "one a channel"),
        ((torch.ones(2), torch.zeros(3), torch.ones(2)), "different numbers of channels"),
    ],
)
def test_bad_values_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        SitePlan(*values)

from functools import partial

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from snn_lowlat.data import Digits
from snn_lowlat.models import SmallCNN
from snn_lowlat.training import Classifier, RoundLater, ValueRangeReLU


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append({m.rounds for m in pl_module.modules() if isinstance(m, ValueRangeReLU)})


def trained(callback, epochs):
    data = Digits(batch_size=512)
    model = SmallCNN(in_channels=1, image_size=8, width=4, activation=partial(ValueRangeReLU, 4, 5))
    watch = Watch()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[callback, watch], **quiet)
    trainer.fit(Classifier(model, 10), data)
    return model, watch.seen


@pytest.mark.parametrize(("after", "seen"), [(0.5, [False, False, True, True]), (0.0, [True] * 4)])
def test_activations_round_from_some_epoch_on(after, seen):
    model, found = trained(RoundLater(after), epochs=4)
    assert found == [{rounds} for rounds in seen]
    assert all(module.rounds for module in model.modules() if isinstance(module, ValueRangeReLU))


def test_all_round_in_the_end():
    model, found = trained(RoundLater(0.9), epochs=1)
    assert found == [{False}]
    assert all(module.rounds for module in model.modules() if isinstance(module, ValueRangeReLU))


@pytest.mark.parametrize("after", [-0.1, 1.0])
def test_shares_without_meaning(after):
    with pytest.raises(ValueError, match="after must be a finite number of at least 0 and below 1"):
        RoundLater(after)

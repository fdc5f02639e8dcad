"""In both Lightnings θ₀ can be taken in setup("fit"): it comes before a resumed run's weights are restored, and before the model is moved."""
import pytorch_lightning as pl
import torch

from tests.regularization.tiny_runs import fit


class Recorder(pl.LightningModule):
    """Writes down what happens to it, in order."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen = []

    def setup(self, stage=None):
        self.seen.append(f"setup, fit: {stage == 'fit'}, weight {self.layer.weight.item():.0f}")

    def on_load_checkpoint(self, checkpoint):
        self.seen.append("on_load_checkpoint")

    def load_state_dict(self, *args, **kwargs):
        self.seen.append("weights restored")
        return super().load_state_dict(*args, **kwargs)

    def to(self, *args, **kwargs):
        self.seen.append("moved")
        return super().to(*args, **kwargs)

    def on_fit_start(self):
        self.seen.append(f"on_fit_start, weight {self.layer.weight.item():.0f}")

    def training_step(self, batch, batch_idx):
        return 0.0 * self.layer(torch.ones(1, 1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def with_weight(value):
    model = Recorder()
    torch.nn.init.constant_(model.layer.weight, value)
    return model


def test_setup_meets_the_base_before_anything_is_restored_or_moved(tmp_path):
    fit(with_weight(7.0), tmp_path, steps=1, save=True)
    resumed = with_weight(3.0)
    fit(resumed, tmp_path, steps=2, resume=str(tmp_path / "last.ckpt"))
    first_move = resumed.seen.index("moved")
    assert resumed.seen[0] == "setup, fit: True, weight 3"
    assert resumed.seen.index("on_load_checkpoint") < resumed.seen.index("weights restored") < resumed.seen.index("on_fit_start, weight 7")
    assert resumed.seen.index("weights restored") < first_move < resumed.seen.index("on_fit_start, weight 7")

"""Which modules run in eval mode at fast steps: those that lose noise by it and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm
from transformers.models.bert.modeling_bert import BertLayer, BertSelfAttention
from transformers.models.levit.modeling_levit import LevitAttention
from transformers.models.rt_detr.modeling_rt_detr import RTDetrModel
from transformers.models.rwkv.modeling_rwkv import RwkvModel
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2Encoder, Wav2Vec2FeatureEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from hf_multirate import Multirate, MultirateConfig, multirate_parameter_groups
from hf_multirate.backward.idle_forward import noise_off
from hf_multirate.backward.noise_modules import only_noise
from tests.support.runs import FIVE
from tests.support.tiny import FAMILIES


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Attention(nn.Module):
    dropout = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout if self.training else 0.0)


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        return x * torch.rand(x.shape[0], 1)

    drop_prob = 0.5


class Inherits(Functional):
    """Has no use for the mode by itself."""


class Auxiliary(nn.Module):
    """As classifiers of torchvision: more outputs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        if self.training:
            return self.drop(self.layer(x)), x.mean()
        return self.layer(x)


class Momentum(nn.Module):
    """A normalisation of somebody's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.layer(F.dropout(x - self.mean, 0.1, self.training))


class Counts(nn.Module):
    """Counts its batches behind dropout that is asked for in the same place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.batches = nn.Linear(6, 6), 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            self.batches += 1
        return self.layer(x)

    dropout = 0.5


class Caches(nn.Module):
    """Keeps in eval mode what it would compute again in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept = nn.Linear(6, 6), {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x @ self.layer.weight
        return x @ self.kept.setdefault("weight", self.layer.weight)


def _statistics(module: nn.Module, x: Tensor) -> None:
    if module.training:
        module.mean.lerp_(x.detach().mean(0), 0.1)


class HandsOut(Momentum):
    """Leaves its statistics to a function that looks at the mode."""

    def forward(self, x: Tensor) -> Tensor:
        _statistics(self, x)
        return self.layer(F.dropout(x - self.mean, 0.1, self.training))


class OtherName(nn.Module):
    """Counts, by another name of what it counts in, where it drops."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.batches = nn.Dropout(0.1), torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.drop.p > 0:
            batches = self.batches
            batches += 1
            x = F.dropout(x, self.drop.p)
        return x


class NamedNorm(nn.Module):
    """Normalises by a function, with statistics whose name says drop."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.drop_norm
        return F.batch_norm(x, self.drop_norm.running_mean, norm.running_var, training=self.training)


class ByLetter(nn.Module):
    """Has another word for ``self``."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = torch.zeros(1)

    def forward(m, x: Tensor) -> Tensor:
        if m.training and (drop := 0.1):
            m.batches += 1
            x = F.dropout(x, drop)
        return x


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.MultiheadAttention(4, 2), Functional(), Attention(),
        DropPath(), Inherits(),
    ],
)  # fmt: skip
def test_dropout_of_any_kind_is_noise(module: nn.Module) -> None:
    assert only_noise(module)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True), nn.LSTM(3, 3, 2, dropout=0.5),
        nn.Linear(3, 3), nn.TransformerEncoderLayer(4, 2, batch_first=True), Auxiliary(), Momentum(), Counts(),
        Caches(), HandsOut(), OtherName(), NamedNorm(), ByLetter(),
    ],
)  # fmt: skip
def test_everything_else_is_not(module: nn.Module) -> None:
    assert not only_noise(module)


def _without_init(kind: type[nn.Module]) -> nn.Module:
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        (BertLayer, True), (BertSelfAttention, FIVE), (tf.BertModel, FIVE), (Wav2Vec2Encoder, True),
        (WhisperEncoder, True), (Wav2Vec2FeatureEncoder, True), (RwkvModel, False),
        (LevitAttention, False), (RTDetrModel, False),
    ],
)  # fmt: skip
def test_transformers_models(kind: type[nn.Module], noise: bool) -> None:
    """RWKV scales its weights by mode, LeViT caches, RT-DETR has more queries in training.

    In transformers 4.57 attention and model of BERT leave dropout to modules of their own.
    """
    assert only_noise(_without_init(kind)) is noise


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("resnet",)])
def test_an_idle_model_gives_what_it_gives_in_inference(family: str) -> None:
    tf.set_seed(0)
    model, batch = FAMILIES[family]()
    with torch.no_grad():
        wanted = model.eval()(**batch).loss
        with noise_off([model.train()]):
            assert torch.equal(model(**batch).loss, wanted)
    assert all(module.training for module in model.modules())


def test_a_forward_of_somebody_else_is_left_alone() -> None:
    module = Functional()
    module.forward = module.forward
    assert not only_noise(module)


def _model(below: nn.Module) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.head = below, nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.below(x)
            return self.head(x[0] if isinstance(x, tuple) else x)

    torch.manual_seed(0)
    return Model()


def _trained(below: nn.Module, period: int, steps: int = 6) -> list[dict[str, Any]]:
    """Buffers behind each step, with weights that are drawn for each, so that rate groups make no difference."""
    model, seen = _model(below).train(), []
    config = MultirateConfig.two_rate("^head", period, "long_step", inactive_forward="eval")
    optimizer = torch.optim.SGD(multirate_parameter_groups(model, config, lr=0.0))
    with Multirate(config).attach(model, optimizer) as multirate:
        for step in range(steps):
            torch.manual_seed(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_()
            multirate.begin_step(step)
            model(torch.full((4, 6), float(step)) + torch.arange(6)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append({name: value.clone() for name, value in model.named_buffers()})
    return seen


BELOW = {
    "own": Momentum,
    "hands out": HandsOut,
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
    "instance norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.InstanceNorm1d(4, track_running_stats=True)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6))),
    "old spectral norm": lambda: nn.Sequential(spectral_norm(nn.Linear(6, 6))),
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("below", BELOW)
def test_running_statistics_are_those_of_every_step(below: str) -> None:
    ends = []
    for period in (1, 3):
        torch.manual_seed(0)
        ends.append(_trained(BELOW[below](), period))
    assert len({str(buffers) for buffers in ends[0]}) > 2  # they change from step to step
    for one, other in zip(*ends, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("below", [Auxiliary, Counts, Caches])
def test_modules_with_other_outputs_or_counts_train(below: type[nn.Module]) -> None:
    module = below()
    _trained(module, 3)
    assert module.training
    if isinstance(module, Counts):
        assert module.batches == 6
    if isinstance(module, Caches):
        assert not module.kept


def test_dropout_inside_of_such_a_module_is_off_all_the_same() -> None:
    module, modes = Auxiliary(), []
    module.drop.register_forward_pre_hook(lambda drop, args: modes.append(drop.training))
    _trained(module, 3)
    assert modes == [True, False, False] * 2

"""Draws: what a GPU gets has the size that was asked for, and a training step asks it for nothing back."""

from dataclasses import replace

import pytest
import torch
from analytic_scene import SMALL, mapped
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from semfield_ros.field.rehearsal import rehearse
from semfield_ros.field.trainer import Trainer
from semfield_ros.mapping import colour_head, language_head
from semfield_ros.memory.draws import kept, on_device, repeated


def test_a_cpu_gets_the_usable_rows():
    usable = torch.tensor([False, True, True, False, True])
    assert kept(usable).tolist() == [1, 2, 4]
    assert kept(torch.zeros(3, dtype=torch.bool)).tolist() == []


def test_a_gpu_gets_the_usable_rows_again_in_place_of_the_others():
    assert repeated(torch.tensor([False, True, True, False, True])).tolist() == [1, 2, 4, 1, 2]
    assert repeated(torch.ones(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]
    assert repeated(torch.zeros(2, dtype=torch.bool)).shape == (2,)
    assert repeated(torch.zeros(0, dtype=torch.bool)).shape == (0,)


def test_numbers_are_copied_to_a_device_once():
    here = torch.device("cpu")
    assert on_device((3, 1, 2), here).tolist() == [3, 1, 2] and on_device((3, 1, 2), here) is on_device((3, 1, 2), here)
    assert on_device((3, 1), here, torch.float64).dtype == torch.float64


def test_a_rehearsal_leaves_no_trace():
    heads = (colour_head(), language_head(8))
    before = torch.random.get_rng_state()
    rehearse(SMALL.field, heads, "cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


class Copies(TorchDispatchMode):
    """Notes every copy from the host to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = [x.device.type for x in args if isinstance(x, torch.Tensor)]
        if isinstance(out, torch.Tensor) and out.device.type == "cuda" and "cpu" in devices and out.dim():
            self.seen.append(str(func))
        return out


def imagined(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def test_a_training_step_never_waits_for_a_gpu(monkeypatch):
    """With tensors that have shapes but no values, as if on a GPU, whatever needs a value raises. Only the way back of
    autograd, which runs in threads of a real device, is left out."""
    train = replace(SMALL.train, fit_window=False, depthless_period=1)
    config = replace(SMALL, field=replace(SMALL.field, backend="torch"), train=train)
    mapping = mapped(3, config)
    field, replay, trainer = mapping.field, mapping.replay, mapping.trainer
    assert isinstance(trainer, Trainer) and replay.language.slots
    replay.with_holes = list(replay.order)
    photometric = trainer.without_depth()
    optimisers = [*trainer.grids.values(), *photometric.grids]
    on_device.cache_clear()

    def backward(loss: torch.Tensor) -> None:
        assert loss.device.type == "cuda" and loss.requires_grad
        for p in field.parameters():
            p.grad = torch.zeros_like(p)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    try:
        with FakeTensorMode():
            replay.device = torch.device("cuda")
            for holder in (replay, replay.language):
                holder.device = replay.device
                for name, value in vars(holder).items():
                    if isinstance(value, torch.Tensor):
                        setattr(holder, name, imagined(value))
            for module in field.modules():
                for name, p in module.named_parameters(recurse=False):
                    setattr(module, name, torch.nn.Parameter(imagined(p)))
            for optimiser in optimisers:
                optimiser.mean, optimiser.square = imagined(optimiser.mean), imagined(optimiser.square)
            tables = {id(optimiser.grid.table) for optimiser in optimisers}
            trainer.dense = torch.optim.Adam([p for p in field.parameters() if id(p) not in tables], fused=True)
            networks = photometric.proposals.networks
            photometric.dense = torch.optim.Adam([p for network in networks for p in network.mlp.parameters()])
            with pytest.raises(DynamicOutputShapeException):
                torch.nonzero(replay.depth)  # what this test would notice
            trainer.step(replay)  # the first may copy what stays there
            with Copies() as copies:
                report = trainer.step(replay)
    finally:
        on_device.cache_clear()  # its tensors have no values
    assert {"sdf", "free", "rgb", "language", "smooth", "photometric"} <= set(report.losses)
    assert report.rays == config.train.rays, "a GPU always gets as many as were asked for"
    assert not copies.seen, "nothing is copied from the host in a step"

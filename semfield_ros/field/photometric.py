"""Learning from colour alone: rays whose depth the sensor could not tell (glass, far walls, sky).

Such a ray is volume-rendered through the same signed distance and the same heads as every other, and its colour is the
only evidence: the gradient moves the geometry. A random background behind what has been accumulated leaves nothing but
something opaque to explain a colour, at the horizon if need be.
"""

from __future__ import annotations

import torch

from ..config import TrainConfig
from ..memory.replay import ColourBatch
from .composite import composite
from .heads import head_loss
from .model import Field
from .optimiser import GridAdam
from .proposal import Proposals
from .volume import distortion_loss, interlevel_loss, update_period


class Photometric:
    """Trains a field from rays without depth; owns its proposals' optimisers. Part of a Trainer."""

    def __init__(self, field: Field, config: TrainConfig):
        self.field, self.config = field, config
        device = next(field.parameters()).device
        if field.proposals is None:
            of = field.config
            field.proposals = Proposals(of.volume, field.workspace, of.seed, of.backend).to(device)
        self.proposals: Proposals = field.proposals
        self.grids = [GridAdam(network.grid) for network in self.proposals.networks]
        dense = [p for network in self.proposals.networks for p in network.mlp.parameters()]
        self.dense = torch.optim.Adam(dense, lr=config.learning_rate, betas=(0.9, 0.99), eps=1e-15, fused=True)
        self.rounds = 0
        """Times it was trained: every `depthless_period` steps of the field."""

    @torch.no_grad()
    def clear_space(self) -> None:
        """Let an untrained field say "free" everywhere. Fog would explain the first colours at once, right before the
        cameras, and never leave."""
        last = self.field.sdf[-1]
        assert isinstance(last, torch.nn.Linear)
        last.bias.fill_(1.0)

    def losses(self, batch: ColourBatch, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], int]:
        """Losses by name of R rays, and the samples of the field they took."""
        norms = batch.directions.norm(dim=-1, keepdim=True)
        directions = batch.directions / norms
        learn = self.rounds % update_period(self.rounds) == 0
        samples = self.proposals.sample(
            batch.origins, directions, step=self.rounds * self.config.depthless_period, learn=learn, generator=generator
        )
        out = composite(self.field, batch.origins, directions, samples, ("rgb",))
        background = torch.rand(batch.rgb.shape, generator=generator, device=batch.rgb.device)
        predicted = out.outputs["rgb"] + (1 - out.weights.sum(1, keepdim=True)) * background
        error = head_loss(self.field.head("rgb").config, predicted, batch.rgb)
        losses = {"photometric": self.config.photometric * batch.share * error}
        if self.config.clear > 0:
            # over the ray's length: a surface costs nothing, fog does
            fog = ((1 - out.distance).clamp_min(0) * samples.edges.diff(dim=1)).sum(1).mean()
            losses["clear"] = self.config.clear * batch.share * fog
        if learn:
            losses["interlevel"] = interlevel_loss(samples.edges, out.weights, samples.proposals)
        if self.config.distortion > 0:
            spread = distortion_loss(samples.edges, out.weights)
            losses["distortion"] = self.config.distortion * batch.share * spread
        return losses, out.weights.numel()

    def step(self, rate: float) -> None:
        """Move the proposals where a gradient has come, and clear it."""
        self.dense.step()
        self.dense.zero_grad(set_to_none=True)
        for grid in self.grids:
            grid.step(rate)
        self.rounds += 1

    def state(self) -> dict[str, torch.Tensor]:
        """Moments and rounds, for a checkpoint."""
        state = {"rounds": torch.tensor(self.rounds)}
        for i, grid in enumerate(self.grids):
            state |= {f"grid{i}.{k}": v for k, v in grid.state().items()}
        for i, p in enumerate(self.dense.param_groups[0]["params"]):
            state |= {f"dense{i}.{k}": v for k, v in self.dense.state.get(p, {}).items()}
        return state

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Resume from `state()`."""
        self.rounds = int(state["rounds"])
        for i, grid in enumerate(self.grids):
            grid.load({k: state[f"grid{i}.{k}"] for k in ("mean", "square", "steps")})
        for i, p in enumerate(self.dense.param_groups[0]["params"]):
            if f"dense{i}.step" in state:
                keys = ("step", "exp_avg", "exp_avg_sq")
                self.dense.state[p] = {k: state[f"dense{i}.{k}"].to(p.device).clone() for k in keys}

"""tiny-cuda-nn as a backend: its documented layout and batch size against a stand-in; the real one where it is."""

import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semfield_ros.config import GridConfig
from semfield_ros.errors import ConfigError
from semfield_ros.field import hash_grid_tcnn
from semfield_ros.field.hash_grid import HashGrid, encode_reference, levels_of
from semfield_ros.field.hash_grid_tcnn import BATCH, TcnnKernels, encoding_config, unavailable

CONFIGS = [
    GridConfig(),
    GridConfig(levels=6, features=4, log2_table=15, min_resolution=16, max_resolution=160),
    GridConfig(levels=16, features=2, log2_table=19, min_resolution=16, max_resolution=2048),
    GridConfig(levels=5, features=8, log2_table=10, min_resolution=5, max_resolution=77),
    GridConfig(levels=1, features=1, log2_table=9, min_resolution=8, max_resolution=8),
]


def layout_of(config: dict) -> list[tuple[float, int, int, int]]:
    """Scale, resolution, rows and offset of each level, as tiny-cuda-nn documents them: in single precision."""
    f, log2_growth = np.float32, np.log2(np.float32(config["per_level_scale"]))
    found, offset = [], 0
    for level in range(config["n_levels"]):
        scale = np.exp2(f(level) * f(log2_growth)) * f(config["base_resolution"]) - f(1)
        resolution = int(np.ceil(scale)) + 1
        rows = min((resolution**3 + 7) // 8 * 8, 2 ** config["log2_hashmap_size"])
        found.append((float(scale), resolution, rows, offset))
        offset += rows
    return found


class Encoding(torch.nn.Module):
    """A stand-in: the documented behaviour on CPUs, point by point, in float32 or with outputs in half precision."""

    half = False

    def __init__(self, n_input_dims: int, encoding_config: dict):
        super().__init__()
        assert n_input_dims == 3 and encoding_config["otype"] == "HashGrid"
        self.config, self.loss_scale = encoding_config, 128.0
        self.layout = layout_of(encoding_config)
        rows = self.layout[-1][3] + self.layout[-1][2]
        self.params = torch.nn.Parameter(torch.zeros(rows * encoding_config["n_features_per_level"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) % 256 == 0, "tiny-cuda-nn takes multiples of 256"
        assert self.loss_scale == 1.0, "scaling is ours, before the conversion"
        table = self.params.view(-1, self.config["n_features_per_level"])
        out = []
        for scale, resolution, rows, offset in self.layout:
            position = (x.double() * scale + 0.5).numpy()
            corner = np.floor(position).astype(np.int64)
            fraction = position - corner
            total = 0
            for bits in itertools.product((0, 1), repeat=3):
                cx, cy, cz = (corner[:, d] + bits[d] for d in range(3))
                if resolution**3 <= rows:
                    index = cx + cy * resolution + cz * resolution * resolution
                else:
                    index = cx ^ (cy * 2654435761 & 0xFFFFFFFF) ^ (cz * 805459861 & 0xFFFFFFFF)
                shares = [np.where(b, fraction[:, d], 1 - fraction[:, d]) for d, b in enumerate(bits)]
                weight, row = torch.from_numpy(np.prod(shares, 0)).float(), torch.from_numpy(index % rows + offset)
                total = total + weight[:, None] * table[row]
            out.append(total)
        encoded = torch.cat(out, 1)
        return encoded.half() if self.half else encoded


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    unavailable.cache_clear()
    yield
    unavailable.cache_clear()


def grid_of(config: GridConfig) -> HashGrid:
    grid = HashGrid(config, 2.0, torch.Generator().manual_seed(1), "torch")
    with torch.no_grad():
        grid.table.normal_(generator=torch.Generator().manual_seed(2))
    return grid


def positions(n: int) -> torch.Tensor:
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.levels}x{c.features}")
@pytest.mark.parametrize("span", [1.0, 2.0])
def test_our_levels_are_tiny_cuda_nns(config, span):
    levels = levels_of(config, span)
    theirs = layout_of(encoding_config(config, levels))
    assert [(r, n, o) for _, r, n, o in theirs] == [(v.resolution, v.rows, v.offset) for v in levels]
    assert [s for s, *_ in theirs] == pytest.approx([v.scale for v in levels], rel=1e-5)


def test_what_cannot_be_laid_out_is_refused():
    config = GridConfig(levels=2, min_resolution=4, max_resolution=8)
    levels = levels_of(config)
    with pytest.raises(ConfigError, match=r"levels of \[4, 8, 4\].*field.backend to auto"):
        encoding_config(config, [*levels, levels[0]])
    too_many = [levels[0]] * 17
    with pytest.raises(ConfigError, match="17 levels; tiny-cuda-nn allows 16"):
        encoding_config(config, too_many)


@pytest.mark.parametrize("n", [0, 1, BATCH, BATCH + 44])
def test_batches_are_padded_and_the_table_is_shared(stand_in, n):
    grid = grid_of(CONFIGS[3])
    kernels = TcnnKernels(grid.config, grid.levels)
    p = positions(n)
    encoded = kernels.forward(p, grid.table, grid.layout)
    assert encoded.dtype == torch.float32 and encoded.shape == (n, grid.width)
    assert torch.allclose(encoded, encode_reference(grid.table, p, grid.levels).detach(), atol=2e-3)
    upstream = torch.randn(n, grid.width, generator=torch.Generator().manual_seed(4))
    (encode_reference(grid.table, p, grid.levels) * upstream).sum().backward()
    added = torch.ones_like(grid.table)
    kernels.backward(p, upstream, grid.layout, added)
    assert torch.allclose(added - 1, grid.table.grad, atol=2e-2), "gradients add to what is there"


def test_small_gradients_survive_half_precision(stand_in, monkeypatch):
    monkeypatch.setattr(Encoding, "half", True)
    grid = grid_of(CONFIGS[3])
    kernels = TcnnKernels(grid.config, grid.levels)
    p, tiny = positions(20), 3e-8  # to zero or twice as much, if converted as it is
    added = torch.zeros_like(grid.table)
    kernels.forward(p, grid.table, grid.layout)
    kernels.backward(p, torch.full((20, grid.width), tiny), grid.layout, added)
    assert float(added.sum()) == pytest.approx(20 * grid.width * tiny, rel=0.02)


def test_a_grid_uses_it_trains_and_copies(stand_in, monkeypatch):
    monkeypatch.setattr("semfield_ros.field.hash_grid.choose_backend", lambda backend, device: backend)
    import copy

    from semfield_ros.field.optimiser import GridAdam

    fast = HashGrid(CONFIGS[3], 2.0, torch.Generator().manual_seed(1), "tcnn")
    slow = HashGrid(CONFIGS[3], 2.0, torch.Generator().manual_seed(1), "torch")
    p = positions(70)
    for _ in range(2):
        for grid in (fast, slow):
            grid(p).square().sum().backward()
            GridAdam(grid).step(1e-2)
    assert torch.allclose(fast.table, slow.table, atol=1e-3) and not fast.table.grad.any()
    assert list(fast.state_dict()) == ["table"], "a checkpoint holds our table alone"
    twin = copy.deepcopy(fast)
    assert twin.kernels() is not fast.kernels() and torch.equal(twin(p), fast(p))


def test_another_number_of_parameters_is_refused(stand_in, monkeypatch):
    grid = grid_of(CONFIGS[3])
    kernels = TcnnKernels(grid.config, grid.levels)
    with pytest.raises(ConfigError, match=r"parameters of .* not 8; set field.backend"):
        kernels.forward(positions(1), torch.zeros(1, 8), grid.layout)


def test_why_it_cannot_be_used_is_remembered(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinycudann", None)  # makes its import fail
    unavailable.cache_clear()
    reason = unavailable("cuda")
    assert reason is not None and "cannot be imported" in reason and "tiny-cuda-nn" in reason
    monkeypatch.setattr(hash_grid_tcnn.importlib, "import_module", lambda name: pytest.fail("looked twice"))
    assert unavailable("cuda") == reason
    unavailable.cache_clear()


@pytest.mark.gpu
def test_the_real_one_computes_what_torch_does():
    reason = unavailable("cuda")
    if reason is not None:
        pytest.skip(reason)
    for config in CONFIGS:
        fast = HashGrid(config, 2.0, torch.Generator().manual_seed(1), "tcnn").cuda()
        slow = HashGrid(config, 2.0, torch.Generator().manual_seed(1), "torch").cuda()
        with torch.no_grad():
            slow.table.normal_()
            fast.table.copy_(slow.table)
        p = positions(1000).cuda()
        a, b = fast(p), slow(p)
        assert torch.allclose(a, b, atol=2e-2)
        a.sum().backward()
        b.sum().backward()
        assert torch.allclose(fast.table.grad, slow.table.grad, atol=2e-2, rtol=2e-2)

"""Triton's kernels: the laws of `triton_laws.py` through the interpreter and on a GPU; and they compile for GPUs."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from analytic_scene import SMALL, mapped
from torch import nn

from semfield_ros import checkpoint
from semfield_ros.config import EncoderConfig, FieldConfig, GridConfig
from semfield_ros.encoders import create
from semfield_ros.errors import ConfigError
from semfield_ros.field.hash_grid import HashGrid, choose_backend, kernels
from semfield_ros.field.mlp import Mlp
from semfield_ros.mapping import Mapping

STUB = create(EncoderConfig(name="stub"))
LAWS = Path(__file__).parent / "triton_laws.py"


def run_laws(device: str, **environment: str) -> None:
    """Interpreted or compiled is decided when Triton is imported: so each in a process of its own."""
    pytest.importorskip("triton", reason="Triton is not installed (it comes with torch on Linux)")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(LAWS)],
        env={**os.environ, "SEMFIELD_TRITON_DEVICE": device, **environment},
        cwd=LAWS.parents[1], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


def test_the_kernels_compute_what_torch_does_through_the_interpreter():
    run_laws("cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.gpu
def test_the_kernels_compute_what_torch_does_on_this_gpu():
    run_laws("cuda")


@pytest.mark.gpu
def test_a_map_learnt_on_a_cpu_says_the_same_on_a_gpu_and_trains_on(tmp_path):
    path = checkpoint.save(tmp_path / "map", mapped(3, SMALL, 30), STUB)
    here, there = (checkpoint.load(path, SMALL, STUB, device) for device in ("cpu", "cuda"))
    assert here.field is not None and there.field is not None
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    with torch.no_grad():
        expected, found = here.field.distance_at(points), there.field.distance_at(points.cuda()).cpu()
        assert torch.allclose(found, expected, atol=1e-5)
        expected, found = (m.field.trunk_at("language", p).cpu() for m, p in ((here, points), (there, points.cuda())))
        assert torch.allclose(found, expected, atol=1e-4)
    before = {k: v.cpu() for k, v in there.field.state_dict().items()}
    for _ in range(5):
        there.train_step()
    assert any(not torch.equal(v.cpu(), before[k]) for k, v in there.field.state_dict().items())
    back = checkpoint.load(checkpoint.save(tmp_path / "back", there, STUB), SMALL, STUB, "cpu")
    assert all(torch.equal(v, there.field.state_dict()[k].cpu()) for k, v in back.field.state_dict().items())


@pytest.mark.gpu
def test_every_backend_gives_a_gpu_the_same_map():
    config = GridConfig(levels=4, log2_table=12, min_resolution=8, max_resolution=128)
    p = torch.rand(5000, 3, generator=torch.Generator().manual_seed(1))
    grids = {b: HashGrid(config, 2.0, torch.Generator().manual_seed(2), b) for b in ("torch", "triton", "auto")}
    expected = grids["torch"](p).detach()
    for name, grid in grids.items():
        assert torch.allclose(grid.to("cuda")(p.cuda()).cpu(), expected, atol=1e-8), name


# ---- the code that is made for GPUs --------------------------------------------------------------------------------

F32, I32 = "*fp32", "*i32"
GRID = {"positions": F32, "scales": F32, "numbers": I32, "n": "i32", "levels": "i32"}
LAYERS = dict.fromkeys(("w1", "b1", "w2", "b2", "w3", "b3"), F32)
WIDTHS = {"K0": 32, "K1": 64, "K2": 1, "K3": 1, "P0": 32, "P1": 64, "P2": 16, "P3": 16, "DEPTH": 2, "RELU_OUT": False}


def compiled(fn, types: dict, constants: dict, capability: int, folder: Path, **options):
    """A kernel compiled for a GPU that need not be there."""
    pytest.importorskip("triton", minversion="3.6", reason="this test speaks to Triton's compiler as of 3.6")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = fn.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn, signature, {(names.index(k),): v for k, v in constants.items()}, aligned)
    os.environ["TRITON_CACHE_DIR"] = str(folder)
    try:
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    finally:
        del os.environ["TRITON_CACHE_DIR"]


@pytest.mark.parametrize("capability", [90])
def test_grid_kernels_become_machine_code_with_vector_accesses(capability, tmp_path):
    pytest.importorskip("triton")
    from semfield_ros.field import hash_grid_triton as grid

    block = {"FEATURES": 4, "B": grid.POINTS}
    forward = compiled(grid._forward, {**GRID, "table": F32, "out": F32}, block, capability, tmp_path)
    backward = compiled(grid._backward, {**GRID, "grad_out": F32, "grad_table": F32}, block, capability, tmp_path)
    # a row of four features is one access, of eight corners each
    assert len(re.findall(r"ld\.global\.v4", forward.asm["ptx"])) == 8
    assert len(re.findall(r"red\.global\S*add\S*f32", backward.asm["ptx"])) == (8 if capability >= 90 else 32)
    assert all(kernel.asm["cubin"] for kernel in (forward, backward))
    singles = ("rate", "beta1", "beta2", "keep1", "keep2", "epsilon", "correction1", "correction2")
    arrays = dict.fromkeys(("table", "grad", "mean", "square"), F32)
    types = {**arrays, **dict.fromkeys(singles, "fp32"), "rows": "i32"}
    assert compiled(grid._adam_touched, types, {"FEATURES": 4, "B": grid.ROWS}, capability, tmp_path).asm["cubin"]


@pytest.mark.parametrize(("capability", "precision"), [(80, "tf32")])
def test_mlp_kernels_become_machine_code_for_tensor_cores(capability, precision, tmp_path):
    pytest.importorskip("triton")
    from semfield_ros.field import mlp_triton as mlp
    from semfield_ros.field import trace_triton

    constants = {**WIDTHS, "PRECISION": mlp.PRECISIONS[precision], "B": mlp.ROWS}
    forward = compiled(mlp._forward, {**LAYERS, "x": F32, "out": F32, "n": "i32"}, constants, capability, tmp_path)
    fused = compiled(
        mlp._grid_mlp, {**GRID, **LAYERS, "table": F32, "out": F32}, {**constants, "FEATURES": 4, "LEVELS": 8},
        capability, tmp_path,
    )  # fmt: skip
    types = dict.fromkeys(("x", "grad_out", "grad_x", "partial"), F32) | dict.fromkeys(
        ("n", "blocks", "programs", "size"), "i32"
    )
    backward = compiled(
        mlp._backward, {**LAYERS, **types}, {**constants, "LAYER": 1, "GRAD_X": True, "B": mlp.BACKWARD_ROWS},
        capability, tmp_path, num_stages=1,
    )  # fmt: skip
    types = {**GRID, **LAYERS, **dict.fromkeys(("origins", "directions", "table", "hit"), F32), "max_steps": "i32"}
    types |= dict.fromkeys(("centre_x", "centre_y", "centre_z", "scale", "truncation", "near", "far"), "fp32")
    sizes = {k: v for k, v in constants.items() if k not in ("DEPTH", "RELU_OUT")} | {"FEATURES": 4, "LEVELS": 8}
    traced = compiled(trace_triton._trace, types, sizes, capability, tmp_path)
    for kernel in (forward, fused, backward, traced):
        assert re.search(r"\b(wg)?mma\.", kernel.asm["ptx"])
        assert kernel.metadata.shared <= 48 * 1024, "every GPU has as much"


# ---- which backend -------------------------------------------------------------------------------------------------


def test_auto_takes_the_best_there_is(monkeypatch):
    assert choose_backend("auto", "cpu") == ("numba" if kernels is not None else "torch")
    assert choose_backend("torch", "cuda") == choose_backend("torch", "cpu") == "torch"
    monkeypatch.setattr("semfield_ros.field.hash_grid._unavailable", lambda backend, device: "it is not here")
    assert choose_backend("auto", "cpu") == choose_backend("auto", "cuda") == "torch"
    monkeypatch.setattr("semfield_ros.field.hash_grid._unavailable", lambda backend, device: None)
    assert choose_backend("auto", "cuda") == "triton"


@pytest.mark.parametrize(
    ("backend", "device", "message"),
    [
        ("cuda", "cuda", "'cuda'; allowed: auto, torch, numba, triton, tcnn"),
        ("triton", "cpu", "(Triton computes on GPUs|Triton is not importable).*backend to auto"),
        ("numba", "cuda", "numba's kernels are for CPUs; set field.backend to auto"),
        ("tcnn", "cpu", "CUDA devices only: set field.backend to auto, or engine.device to cuda"),
    ],
)
def test_backends_that_cannot_compute_are_refused_with_a_remedy(backend, device, message):
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0") and backend == "triton":
        pytest.skip("TRITON_INTERPRET is set: Triton computes anywhere")
    with pytest.raises(ConfigError, match=message):
        choose_backend(backend, device)
    if device == "cpu":
        grid = HashGrid(GridConfig(levels=1), 1.0, torch.Generator(), backend)
        with pytest.raises(ConfigError, match=message):
            grid(torch.zeros(1, 3))


def test_the_configuration_knows_the_backends():
    assert FieldConfig().backend == "auto" and FieldConfig(backend="tcnn", precision="tf32").precision == "tf32"
    with pytest.raises(ConfigError, match="backend is 'jax'; allowed: auto, torch"):
        FieldConfig(backend="jax")
    with pytest.raises(ConfigError, match="precision is 'half'; allowed: float32"):
        FieldConfig(precision="half")
    with pytest.raises(ConfigError, match="'jax'"):
        HashGrid(GridConfig(levels=1), 1.0, torch.Generator(), "jax")


def test_a_map_that_another_backend_made_is_loaded(tmp_path):
    config = replace(SMALL, field=replace(SMALL.field, backend="torch", precision="tf32"))
    path = checkpoint.save(tmp_path / "map", mapped(2, config, 1), STUB)
    loaded = checkpoint.load(path, SMALL, STUB, "cpu")
    assert loaded.config.field == SMALL.field, "what computes is this machine's business"
    assert loaded.field is not None and loaded.field.grid("geometry").backend == loaded.field.sdf.backend == "auto"


def test_a_map_is_not_begun_where_its_backend_cannot_compute():
    with pytest.raises(ConfigError, match=r"field.backend is 'tcnn', but"):
        Mapping(replace(SMALL, field=replace(SMALL.field, backend="tcnn")), 8, "cpu")


def test_an_mlp_is_its_layers():
    own = Mlp(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    assert list(own.state_dict()) == list(plain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    plain.load_state_dict(own.state_dict())
    x = torch.randn(7, 5)
    assert torch.equal(own(x), plain(x)) and not own.fused("cpu")
    grid = HashGrid(GridConfig(levels=1, features=1, max_resolution=16), 1.0, torch.Generator())
    small = Mlp(nn.Linear(1, 3), nn.ReLU())
    assert torch.equal(small.of_grid(grid, x[:, :3].sigmoid()), small(grid(x[:, :3].sigmoid())))
    assert not small.of_grid(grid, x[:, :3].sigmoid()).requires_grad

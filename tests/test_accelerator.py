"""Every method gives on an accelerator what it gives on the processor.

On a machine without one the accelerator is pretended (elsewhere.py), which tells what is on the wrong device; it needs
a process of its own. `pytest -m conformance` has all cases.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_mixtures
import tiny_models
import torch
from device_cases import PRUNED, SPREAD, SPREADS
from in_parts import few
from packaging.version import Version

from lmprune.checkpoints import devices
from lmprune.precision import full_products, in_float64, place_of_float64

HERE = Path(__file__).parent

pretends = pytest.mark.skipif(
    Version(torch.__version__.split("+")[0]) < Version("2.9"), reason="torch pretends no device before 2.9"
)


def differences(folder: Path, device: str, cases: tuple[str, ...]) -> dict[str, str | None]:
    line = [sys.executable, HERE / "device_cases.py", device, folder, *cases]
    told = subprocess.run(line, capture_output=True, text=True, check=True)
    found: dict[str, str | None] = {}
    for said in told.stdout.splitlines():
        found |= json.loads(said)
    return found


@pytest.mark.conformance
@pretends
def test_all_as_on_the_processor(tmp_path: Path) -> None:
    assert differences(tmp_path, "elsewhere", tuple(PRUNED)) == dict.fromkeys(PRUNED)


@pytest.mark.conformance
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
def test_all_as_on_the_processor_on_a_real_one(tmp_path: Path) -> None:
    assert differences(tmp_path, "auto", tuple(PRUNED)) == dict.fromkeys(PRUNED)


@pytest.mark.conformance
@pretends
@pytest.mark.parametrize("order", SPREAD)
def test_all_as_on_the_processor_where_blocks_are_on_two_devices(order: str, tmp_path: Path) -> None:
    assert differences(tmp_path, order, ()) == dict.fromkeys(SPREADS)


@pytest.mark.conformance
@pretends
def test_every_family_as_on_one_device_where_blocks_are_on_two() -> None:
    told = subprocess.run([sys.executable, HERE / "in_families.py"], capture_output=True, text=True, check=True)
    found = {name: wrong for line in told.stdout.splitlines() for name, wrong in json.loads(line).items()}
    assert found == dict.fromkeys([*tiny_models.NAMES, *tiny_mixtures.NAMES])


@pytest.mark.slow
@pretends
@pytest.mark.parametrize("order", few(SPREAD, len(SPREAD)))
def test_some_as_on_the_processor_where_blocks_are_on_two_devices(order: str, tmp_path: Path) -> None:
    cases = ("obs", "obs of layers", "eval")
    assert differences(tmp_path, order, cases) == dict.fromkeys(cases)


_MIXED = """
import torch
from elsewhere import pretended
with pretended() as there:
    a, b = torch.ones(2, 2, device=there), torch.ones(2, 2)
    told = []
    for mix in (lambda: a @ b, lambda: a.index_select(0, torch.tensor([0])), lambda: b[torch.tensor([0], device=there)],
                lambda: torch.where(a > 0, a, b), lambda: torch.cat([a, b]), lambda: b.add_(a)):
        try:
            mix()
            told.append(False)
        except RuntimeError as error:
            told.append("two devices" in str(error))
    assert told == [True] * 6, told
    assert float((a @ b.to(there) * torch.tensor(2.0)).sum()) == 16 and (a + 1).cpu().device.type == "cpu"
"""


@pytest.mark.slow
@pretends
def test_what_is_mixed_is_told() -> None:
    """The control: the pretended device refuses what a real one would."""
    subprocess.run([sys.executable, "-c", _MIXED], cwd=HERE, check=True)


_APART = """
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch
import torch
from device_cases import difference, made
from elsewhere import DEVICE, both
from tiny_models import tiny_model
from lmprune import GradualPruner
from lmprune.checkpoints import devices
from lmprune.errors import UserError
from lmprune.training.settings import TrainSettings
from lmprune.training.train import train
made(folder := Path(sys.argv[1]))
for order in (list, reversed):
    with patch.object(devices, "_bring", lambda *_: None):  # the states stay where a block has left them
        try:
            raise SystemExit(f"went through: {difference('activation', folder, 'auto', partial(both, order))}")
        except RuntimeError as error:
            assert "two devices" in str(error), error
with both(list):
    model = devices.placed(tiny_model("llama"), "auto", "it")
    example = {"input_ids": list(range(8))}
    for work in (lambda: GradualPruner(model, method="gum", keep=0.5, num_steps=20),
                 lambda: train(model, [example] * 4, TrainSettings(steps=1, batch_size=2))):
        try:
            work()
            raise SystemExit("a spread model was trained")
        except UserError as error:
            assert "on a model whose blocks are on several devices; load it on one" in str(error), error
"""


@pytest.mark.conformance
@pretends
def test_states_that_stay_behind_are_told_and_no_spread_model_is_trained(tmp_path: Path) -> None:
    """The control: where nothing is moved, the walk fails."""
    subprocess.run([sys.executable, "-c", _APART, tmp_path], cwd=HERE, check=True)


def test_where_there_is_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_float64(*_args: object, dtype: torch.dtype, device: torch.device) -> None:
        raise TypeError("the MPS framework doesn't support float64")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "eye", no_float64)
        assert place_of_float64.__wrapped__(torch.device("mps")) == torch.device("cpu")
    assert in_float64(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float64


def test_products_are_whole_though_the_program_rounds_them() -> None:
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with full_products():
            assert not matmul.allow_tf32 if not hasattr(matmul, "fp32_precision") else matmul.fp32_precision == "ieee"
        assert matmul.allow_tf32 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_auto_is_the_accelerator_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    assert devices.check_device("auto") == torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    assert devices.check_device("auto") == torch.device("cpu")

    def refuse() -> None:
        raise RuntimeError("Cannot access accelerator device when none is available.")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", refuse)  # as torch 2.6 has it
    assert devices.check_device("auto") == torch.device("cpu")

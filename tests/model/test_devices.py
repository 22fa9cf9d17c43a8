"""How the cores are used: waiting threads that sleep, and bfloat16 where it is in hardware."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lingula.model import devices
from lingula.model.devices import cpu_has_bfloat16, make_fabric, resolve_device
from lingula.settings.config import Config, vary

# What the OpenMP that torch uses is told, by lingula or the user: in this process, in a decoding
# process as training starts it, and in a child as a launcher starts it.
LOADED = """
import ctypes, multiprocessing, subprocess, sys
import lingula

def load(library):
    ctypes.CDLL(library)

if __name__ == '__main__':
    load(sys.argv[1])
    child = multiprocessing.get_context(sys.argv[2]).Process(target=load, args=(sys.argv[1],))
    child.start()
    child.join()
    subprocess.run([sys.executable, '-c', f'import ctypes; ctypes.CDLL({sys.argv[1]!r})'])
"""


@pytest.mark.parametrize(("user", "told"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    user: str | None, told: str, tmp_path: Path
) -> None:
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    library = Path(found.origin).parent / "lib" / "libgomp.so.1"
    if not library.is_file():
        pytest.skip("this torch does not bring GNU's OpenMP")
    script = tmp_path / "script.py"
    script.write_text(LOADED)
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    env |= {"OMP_DISPLAY_ENV": "true"} | ({} if user is None else {"OMP_WAIT_POLICY": user})
    line = [sys.executable, str(script), str(library), "forkserver"]
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=120, check=True)
    policies = [line.split("=")[1] for line in done.stderr.splitlines() if "WAIT_POLICY" in line]
    assert policies == [f" '{told}'"] * 3


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, False),
        ({"ONEDNN_MAX_CPU_ISA": "avx512_core"}, False),
        ({"DNNL_MAX_CPU_ISA": "AVX2"}, False),
        ({"DNNL_MAX_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "DEFAULT"}, True),
    ],
)
def test_a_limit_on_instructions_is_heeded(
    limit: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in limit.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_has_bfloat16() is expected
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not cpu_has_bfloat16()


@pytest.mark.parametrize("has", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_emulated_bfloat16_is_said_before_the_start(
    precision: str, has: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: has)
    with caplog.at_level(logging.WARNING, "lingula"):
        make_fabric("cpu", precision)
    assert ("emulates" in caplog.text) is (precision == "bf16" and not has)


@pytest.fixture
def older_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA device of before Ampere: torch emulates bfloat16 on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )


@pytest.mark.usefixtures("older_card")
def test_a_card_that_emulates_bfloat16_trains_in_fp32(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lingula")
    found = resolve_device(Config())
    assert (found.device, found.precision) == ("cuda", "fp32")
    assert "Tesla T4 has no bfloat16" in caplog.text and "precision=fp32" in caplog.text
    caplog.clear()
    assert resolve_device(vary(Config(), precision="fp32")).precision == "fp32"
    assert not caplog.records
    # Asked for by name, it is done, and said.
    assert resolve_device(vary(Config(), precision="bf16")).precision == "bf16"
    assert "emulated, and slow" in caplog.text


@pytest.mark.usefixtures("older_card")
def test_a_newer_card_trains_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_device(Config()).precision == "bf16" and not caplog.records

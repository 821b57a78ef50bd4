from pathlib import Path

import pytest

from components.core import ledger as ledger_module
from components.core.gpus import kinds
from components.core.ledger import LEDGER, Ledger, LedgerEntry, cost_of, total
from components.core.records import read_json


def test_requests_are_priced_and_unknown_prices_stay_unknown(tmp_path: Path) -> None:
    with Ledger("generate", tmp_path / "a") as ledger:
        ledger.count(requests=200, tokens_in=1000, tokens_out=500)
    with Ledger("train", tmp_path / "b"):
        pass
    paid = read_json(tmp_path / "a" / LEDGER, LedgerEntry)
    assert paid.cost == pytest.approx(0.24), "the post's 100 rows at two requests a row"
    assert (paid.requests, paid.tokens_in, paid.tokens_out) == (200, 1000, 500)
    assert paid.seconds >= 0 and paid.peak_memory_bytes > 1e6
    free = read_json(tmp_path / "b" / LEDGER, LedgerEntry)
    assert free.cost is None, "a CPU machine is not in the price table, which is not free"
    assert total([paid, paid]).cost == pytest.approx(0.48)
    assert total([paid, free]).cost is None


def test_gpu_hours_are_priced() -> None:
    assert cost_of(0, "NVIDIA A100-SXM4-40GB", 600) == pytest.approx(4 / 6)
    assert cost_of(100, "NVIDIA A100-SXM4-40GB", 1200) == pytest.approx(8 / 6 + 0.12)
    assert cost_of(100, "NVIDIA B999", 600) is None


def test_a_gpus_own_price_has_its_own_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("train", tmp_path)
    assert ledger.entry().prices_date == "2024-10-01"
    monkeypatch.setattr(ledger_module, "_gpu", lambda: ("NVIDIA H200", 1, 0))
    price = kinds()["h200"].price
    assert price is not None and ledger.entry().prices_date == price.date


def test_a_failed_stage_writes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Ledger("train", tmp_path):
        raise RuntimeError
    assert not (tmp_path / LEDGER).exists()

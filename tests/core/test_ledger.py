import json
from pathlib import Path

import pytest

from components.core import ledger as ledger_module
from components.core.errors import DataError
from components.core.gpus import kinds
from components.core.ledger import LEDGER, Ledger, LedgerEntry, merge
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
    assert merge([tmp_path / "a", tmp_path / "a"]).cost == pytest.approx(0.48)
    assert merge([tmp_path / "a", tmp_path / "b"]).cost is None


def test_gpu_hours_are_priced(tmp_path: Path) -> None:
    ledger = Ledger("train", tmp_path)
    assert ledger._cost(600, "NVIDIA A100-SXM4-40GB", 1) == pytest.approx(4 / 6)
    assert ledger._cost(600, "NVIDIA A100-SXM4-40GB", 2) == pytest.approx(8 / 6)
    assert ledger._cost(600, "NVIDIA B999", 1) is None


def test_a_gpus_own_price_has_its_own_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger("train", tmp_path)
    assert ledger.entry().prices_date == "2024-10-01"
    monkeypatch.setattr(ledger_module, "_gpu", lambda: ("NVIDIA H200", 1, 0))
    assert ledger.entry().prices_date == kinds()["h200"].price.date


def test_own_prices(tmp_path: Path) -> None:
    table = {
        "date": "2030-01-01", "source": "me", "currency": "EUR", "gpu_hour": {},
        "teacher_request": 1.0,
    }  # fmt: skip
    (tmp_path / "prices.json").write_text(json.dumps(table), encoding="utf-8")
    with Ledger("generate", tmp_path, str(tmp_path / "prices.json")) as ledger:
        ledger.count(requests=3)
    entry = read_json(tmp_path / LEDGER, LedgerEntry)
    assert (entry.cost, entry.currency, entry.prices_date) == (3.0, "EUR", "2030-01-01")
    with Ledger("generate", tmp_path / "dollars") as ledger:
        ledger.count(requests=1)
    mixed = merge([tmp_path, tmp_path / "dollars"])
    assert (mixed.cost, mixed.currency) == (None, ""), "euros and dollars have no sum"
    (tmp_path / "prices.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"prices\.json: date: Field required"):
        Ledger("generate", tmp_path, str(tmp_path / "prices.json"))


def test_a_failed_stage_writes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Ledger("train", tmp_path):
        raise RuntimeError
    assert not (tmp_path / LEDGER).exists()

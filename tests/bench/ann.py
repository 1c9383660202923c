"""A catalogue of a million items: our exact kernel over vectors of 4, 2 and 1 bytes a number, and indexes of FAISS.

ALS learns from the made-up platform itself, so vectors have the lengths and the clusters of trained ones; NDCG@20 is that of
pairs held out. Whoever is asked about has the same folded-in vector for all contenders but those of other numbers.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from jobs.models import NONE, Candidates, Training, Users
from jobs.models.als import Model, Settings
from jobs.world_model import World
from tests.bench.train import K, halves, ndcg_of

ROUNDS = 3


def contenders(cells: int, graph: int) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Numbers, index, and the searches over it."""
    for store_as in ("float32", "float16", "int8"):
        yield store_as, "", ("",)
    yield "float32", "Flat", ("",)
    yield "float32", "SQ8", ("",)
    yield "float32", f"IVF{cells},Flat", ("nprobe=16", "nprobe=64")
    yield "float32", f"IVF{cells},SQ8", ("nprobe=16", "nprobe=64")
    yield "int8", f"IVF{cells},SQ8", ("nprobe=64",)
    yield "float32", f"HNSW{graph}", ("efSearch=128", "efSearch=512")


def measure(
    rounds: int,
    users: int = 200_000,
    items: int = 1_000_000,
    factors: int = 64,
    asked: int = 512,
    n: int = 100,
    cells: int = 1_024,
    graph: int = 32,
) -> dict[str, Any]:
    """Bytes on disk, CPU seconds to build the index, users a CPU second on one thread (without folding in), recall of the n
    exact candidates by float32, and NDCG@20."""
    known, truth = halves(World(users=users, items=items), np.random.default_rng(7))
    begun = time.process_time()
    trained = Model.fit(Training(known, known, {}, seed=7), Settings(factors=factors))
    training = time.process_time() - begun
    rows = np.flatnonzero((np.diff(truth.indptr) > 0) & (np.diff(known.indptr) > 0))[:asked]
    group = Users(known[rows], known[rows], known[rows], np.ones(items, bool))
    lengths = np.linalg.norm(trained.item_factors[trained.known], axis=1)
    table: list[dict[str, Any]] = []
    exact: list[Candidates] = []
    for store_as, index, searches in contenders(cells, graph):
        table += _rows(trained, store_as, index, searches, group, truth[rows], n, rounds, exact)
    return {
        "pairs": known.nnz,
        "searchable_items": int(trained.known.sum()),
        "train_cpu_seconds": round(training, 1),
        "lengths": np.quantile(lengths, [0.1, 0.5, 0.9, 0.99, 1]).round(4).tolist(),
        "table": table,
    }


def _rows(
    trained: Model,
    store_as: str,
    index: str,
    searches: tuple[str, ...],
    group: Users,
    truth: csr_matrix,
    n: int,
    rounds: int,
    exact: list[Candidates],
) -> Iterator[dict[str, Any]]:
    """One a search; the first of all is what the others' recall is counted by."""
    for search in searches:
        settings = trained.settings.model_copy(update={"store_as": store_as, "index": index, "index_search": search})
        if search == searches[0]:
            begun = time.process_time()
            model = Model.trained(np.asarray(trained.item_factors), trained.known, settings)
            building = time.process_time() - begun
            size = _size(model)
        else:
            import faiss

            faiss.ParameterSpace().set_index_parameters(model.index.items, search)
        query = model._query(group, np.arange(group.weights.shape[0]))
        seconds = []
        for _ in range(rounds + 1):
            begun = time.process_time()
            with threadpool_limits(1, "blas"):
                found, short = model._best(query, n)
            seconds.append(time.process_time() - begun)
        exact.append(found)
        row = {
            "store_as": store_as,
            "index": index or "ours, exact",
            "search": search,
            "mib": round(size / 2**20),
            "build_cpu_seconds": round(building, 1),
            "users_a_cpu_second": round(len(short) / statistics.median(seconds[1:])),
            f"recall@{n}": round(_recall(exact[0].items, found.items), 4),
            f"ndcg@{K}": round(ndcg_of(found.items, truth), 5),
            "searched_exactly": round(float(short.mean()), 4),
        }
        print(row, flush=True)
        yield row


def _recall(exact: NDArray[np.int32], found: NDArray[np.int32]) -> float:
    pairs = zip(exact, found, strict=True)
    return float(np.mean([np.isin(one[one != NONE], other).mean() for one, other in pairs]))


def _size(model: Model) -> int:
    """Bytes of its files."""
    with tempfile.TemporaryDirectory(prefix="nightlist-") as folder:
        model.save(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).iterdir())

"""The process in which models are fitted and judged: it can be ended at any moment, and may run out of memory by itself.

It speaks lines of JSON over stdin and stdout, so that whoever started it decides, after each answer, whether to go on.
"""

import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from jobs import models
from jobs.config import DatasetSettings, TrainSettings, settings_class
from jobs.models import CandidateModel, some
from jobs.tuning.ground import Ground, candidates
from jobs.units import unit
from schemas.errors import NightlistError

MEMORY_SHARE = 0.8
"""Of what is free when the worker starts: more is refused to it, rather than to somebody else on the machine."""


class Failed(NightlistError):
    """A trial came to no result; says why."""


class Worker:
    """The process as its starter sees it; started when it is first asked, and again after it died."""

    def __init__(self, dataset: Path, pairs: Path, seed: int, train: TrainSettings) -> None:
        """As for Ground.load."""
        self._arguments = [str(dataset), str(pairs), str(seed), train.model_dump_json()]
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Its answer. Raises Failed: it says no, died, or has none after so many seconds (and is ended then)."""
        process = self._process or self._started()
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, seconds))
            line = process.stdout.readline() if ready else None
        except BaseException as error:
            self.end()
            if isinstance(error, BrokenPipeError):
                raise Failed("died") from None
            raise
        if line is None:
            self.end()
            raise Failed(f"ended after {seconds:.0f} s")
        if not line:
            code = process.wait()
            self.end()
            raise Failed("died, most likely of too little memory" if code < 0 else f"ended with code {code}; see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def end(self) -> None:
        """End the process, whatever it is doing."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
        self._process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        # A session of its own: Ctrl-C is for who started it. Spark gave this process one BLAS thread; a fit may have all.
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jobs.tuning.worker", *self._arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        return self._process


class Bench:
    """What the process does: `fit` a model, `judge` it on some users, write its `lists`."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.model: CandidateModel | None = None

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One of the methods below by the name under `do`, and the seconds that it took."""
        start = time.monotonic()
        done: dict[str, Any] = getattr(self, question["do"])(**question["with"])
        return done | {"seconds": time.monotonic() - start}

    def about(self) -> dict[str, Any]:
        """What is there to judge by."""
        ground = self.ground
        return {
            "users": ground.truth.shape[0],
            "everybody": ground.everybody,
            "items": ground.training.items,
            "pairs": int(ground.training.weights.nnz),
            "times": ground.has_times,
            "weights": ground.has_weights,
        }

    def fit(self, name: str, sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Train a model, and those that it requires, under sections of settings ([dataset] among them)."""
        self.model = None  # its memory is needed
        self.training, self.users, self.sampled = self.ground.under(DatasetSettings(**sections["dataset"]))
        fitted: dict[str, CandidateModel] = {}
        for each in (*models.requires(name, _section(name, sections)), name):
            fitted[each] = models.module(each).Model.fit(self.training, _section(each, sections), fitted)
        self.model = fitted[name]
        return {}

    def judge(self, start: int, stop: int, k: int) -> dict[str, Any]:
        """The sum of NDCG@k over these of the users that are judged."""
        rows = slice(start, stop)
        found = candidates(self.model, some(self.users, rows), k)
        return {"sum": float(self.ground.gains(found.items, rows, k).sum())}

    def lists(self, n: int, path: str) -> dict[str, Any]:
        """The model's n candidates of all users that are judged, and the unit of its scores, as a .npz file."""
        found = candidates(self.model, self.users, n)
        draft = Path(path).with_suffix(".draft.npz")
        np.savez(draft, items=found.items, scores=found.scores, unit=unit(self.model, self.sampled, n))
        draft.replace(path)
        return {}


def _section(name: str, sections: Mapping[str, Mapping[str, Any]]) -> Any:
    return settings_class().model_fields[name].annotation(**sections.get(name, {}))


def main() -> None:
    """Answer questions until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    _limit_memory()
    dataset, pairs, seed, train = sys.argv[1:]
    bench = Bench(Ground.load(Path(dataset), Path(pairs), int(seed), TrainSettings.model_validate_json(train)))
    for line in sys.stdin:
        try:
            answer = bench.answer(json.loads(line))
        except MemoryError:
            answer = {"error": "needs more memory than there is"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        print(json.dumps(answer), file=answers, flush=True)


def _end_with_parent(parent: int) -> None:
    """Who was killed can't end us."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _limit_memory() -> None:
    """Where Linux tells what is free: a MemoryError is a result, the kernel's killer is none."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limit = int(MEMORY_SHARE * 1024 * int(told["MemAvailable"].split()[0]))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    except (OSError, KeyError, ValueError):
        return


if __name__ == "__main__":
    main()

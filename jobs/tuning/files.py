"""The files of one search: F.toml and what stands beside it, under names made from its own."""

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import models
from jobs.commands.init import toml
from jobs.config import RootSettings
from jobs.run import checksum, file_checksum, read_json, write_json
from schemas.errors import Busy, ConfigError, InputError

HEAD = """\
# Found by `nightlist tune`: the settings that its figure rests on, where they are not the defaults. Put them into nightlist.toml.
# {figure}
# nightlist evaluate --train {train} --test {valid} --config {out}{k}
"""
JOURNAL = "journal.log"
"""Optuna's, in the working folder."""
STAGES = ("dataset", "train", "retrieve", "rank", "rerank")
"""Sections that change what `evaluate` measures, next to the models'."""


@dataclass(frozen=True)
class Files:
    """`out` is F.toml."""

    out: Path

    def beside(self, ending: str) -> Path:
        """F with another ending."""
        return self.out.with_name(self.out.stem + ending)

    @property
    def train(self) -> Path:
        """The part that settings are tried on."""
        return self.beside(".train.parquet")

    @property
    def valid(self) -> Path:
        """The part that they are judged by."""
        return self.beside(".valid.parquet")

    @property
    def work(self) -> Path:
        """What a search that goes on needs; may be deleted once it is over."""
        return self.beside(".tune")

    @property
    def journal(self) -> Path:
        """What was tried."""
        return self.work / JOURNAL

    @contextmanager
    def claimed(self, arguments: Mapping[str, Any]) -> Iterator[None]:
        """Keep others out, and other arguments.

        Raises:
            ConfigError: `out`, or a part that would be written beside it, is somebody else's, or belongs to a search with other
                arguments.
            Busy: another process is at it.
        """
        if self.out.suffix != ".toml":
            raise ConfigError(f"--out {self.out}: expected a name that ends with .toml")
        theirs = next((path for path in (self.out, self.train, self.valid) if path.exists()), None)
        if theirs and not self.work.exists():
            raise ConfigError(
                f"--out {self.out}: {theirs} exists already, and is of no search to go on with; take another name"
            )
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            (self.work / "lock").touch()
        except OSError as error:
            raise ConfigError(
                f"--out {self.out}: {self.work} can't be written to: {error.strerror}; name another"
            ) from None
        with (self.work / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another `nightlist tune` is at work on {self.out}; wait for it") from None
            self._check(arguments)
            self.unlock()
            yield

    def unlock(self) -> None:
        """Take away the lock that Optuna had on the journal when it was killed or torn from its work: it would wait for 30 s."""
        (self.work / f"{JOURNAL}.lock").unlink(missing_ok=True)

    def _check(self, arguments: Mapping[str, Any]) -> None:
        before = read_json(self.work / "arguments.json")
        if before is None:
            write_json(self.work / "arguments.json", arguments)
            return
        for name, value in arguments.items():
            if before.get(name) != value:
                raise ConfigError(
                    f"{self.work} holds a search with another {name} ({before.get(name)}, now {value}); "
                    f"take another --out, or delete {self.work} and start anew"
                )


def identity(path: Path) -> str:
    """A checksum of a file's, or a folder's, contents. Raises InputError where there is none, or it can't be read."""
    if not path.exists():
        raise InputError(f"--train {path} does not exist; mend the path")
    try:
        return checksum(path) if path.is_dir() else file_checksum(path)
    except OSError as error:
        raise InputError(f"--train {path} can't be read: {error.strerror}") from None


def write_config(files: Files, settings: RootSettings, tuned: Sequence[str], figure: str, k: int) -> None:
    """F.toml: names and weights of events, and every setting of the stages and of the models in use that is not its default or was tuned
    (`tuned`: full names)."""
    used = (*settings.retrieve.models, "popular")  # who has no list of their own gets the popular one
    needed = [each for name in used for each in (*models.requires(name, getattr(settings, name)), name)]
    names = dict.fromkeys((*STAGES, *needed))
    lines = [
        HEAD.format(
            figure=figure, train=files.train.name, valid=files.valid.name, out=files.out.name, k=f" --k {k}" * (k != 20)
        )
    ]
    events = {key: value for key in ("columns", "weights") if (value := getattr(settings.events, key))}
    if events:
        lines.append("\n[events]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in events.items()))
    for name in names:
        section = getattr(settings, name)
        plain, defaults = section.model_dump(mode="json"), type(section)().model_dump(mode="json")
        kept = {key: plain[key] for key in plain if plain[key] != defaults[key] or f"{name}.{key}" in tuned}
        if kept:
            lines.append(f"\n[{name}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in kept.items()))
    draft = files.beside(".toml.draft")
    draft.write_text("".join(lines), encoding="utf-8")
    draft.replace(files.out)

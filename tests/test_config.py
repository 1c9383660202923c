"""nightlist.toml: what is refused and how it is said, what overrides what, and which settings make another run."""

import os
import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel

from jobs import models
from jobs.cli import cli
from jobs.commands.init import template
from jobs.config import RootSettings, digest_of, load_settings, settings_class
from schemas.errors import ConfigError
from schemas.settings import CassandraSettings, ServeSettings, StoreSettings, load_service_settings

CHANGES_NO_LIST = {"store", "serve", "auth", "spark", "paths", "gate"}
"""Sections that are not in a run's digest."""
INPUT_PATHS = {"events", "items", "users", "blocks"}
"""Keys of [input] that are not either: the tables' contents are in a run's name, and where they lie is not."""


def section(name: str) -> type[BaseModel]:
    """The class of a section, or of a table in one: `store.cassandra`."""
    cls: Any = settings_class()
    for part in name.split("."):
        cls = cls.model_fields[part].annotation
    assert isinstance(cls, type)
    assert issubclass(cls, BaseModel)
    return cls


FIELDS = [(name, key) for name in settings_class().model_fields for key in section(name).model_fields]
IN_TEMPLATE = [pair for pair in FIELDS if pair != ("store", "cassandra")]
IN_TEMPLATE += [("store.cassandra", key) for key in CassandraSettings.model_fields]


def of_every(fields: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    """Once for each of these settings."""
    return pytest.mark.parametrize(("name", "key"), fields, ids=[f"{name}.{key}" for name, key in fields])


every_field = of_every(FIELDS)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests run in an empty folder, without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NIGHTLIST_")]:
        monkeypatch.delenv(name)


def written(text: str) -> Path:
    """A nightlist.toml in a folder of its own below the working folder."""
    path = Path.cwd() / "configured" / "nightlist.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str, *overrides: str) -> str:
    """What is said about a file that can't be used."""
    with pytest.raises(ConfigError) as caught:
        load_settings(written(text), overrides)
    return str(caught.value)


class TestUnknownKeys:
    """A key that nobody knows is an error that names the nearest one."""

    @every_field
    def test_every_misspelt_key_is_corrected(self, name: str, key: str) -> None:
        """Whatever the section, one letter too many is told from the right key."""
        message = refusal(f"[{name}]\n{key}z = 1")

        assert f"unknown key {name}.{key}z (did you mean {key}?)" in message

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[alss]\nfactors = 3", "unknown key alss (did you mean als?)"),
            ("seed = 3", "unknown key seed"),
            ("[gate.users]\nwarn = 0.9\nstopp = 0.8", "unknown key gate.users.stopp (did you mean stop?)"),
            (
                '[[events.reject]]\nreason = "x"\nwhere = "y"\nwhre = "y"',
                "unknown key events.reject.0.whre (did you mean where?)",
            ),
            ("[rerank]\nlength = 3", "unknown key rerank.length (known here: n)"),
        ],
        ids=["section", "no section", "level", "rule", "nothing near"],
    )
    def test_other_places(self, text: str, said: str) -> None:
        """Sections, keys outside of any, and keys of nested tables are corrected too."""
        assert said in refusal(text)

    def test_all_mistakes_are_named_at_once(self) -> None:
        """One try is enough to learn of two misspelt keys, and of the file."""
        message = refusal("[als]\nfactor = 3\n[retrieve]\nmodel = ['als']")

        assert "did you mean factors?" in message
        assert "did you mean models?" in message
        assert "nightlist.toml" in message


class TestBadValues:
    """A value that can't be used is named with its section and key."""

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[als]\nfactors = 'many'", "als.factors = 'many'"),
            ("[als]\nfactors = 0", "als.factors = 0"),
            ("[train]\nseed = -1", "train.seed = -1"),
            ("[als]\nregularization = -1.5", "als.regularization = -1.5"),
            ("[events]\nweights = { watch = 'much' }", "events.weights.watch = 'much'"),
            ("[events]\nearliest = 'yesterday'", "events.earliest = 'yesterday'"),
            ("[[events.reject]]\nreason = 'Not A Name'\nwhere = 'x'", "events.reject.0.reason = 'Not A Name'"),
            ("[gate]\nusers = 3", "gate.users = 3"),
            ("[similar]\nmethod = 'magic'", "similar.method = 'magic'"),
            ("[retrieve]\nmodels = []", "retrieve.models = []"),
            ("[serve]\nport = 70000", "serve.port = 70000"),
            ("[store]\nkeep = 1", "store.keep = 1"),
            ("store = 5", "store = 5"),
        ],
    )
    def test_the_value_is_named(self, text: str, said: str) -> None:
        """The message holds section.key = value as it was read."""
        assert said in refusal(text)

    @pytest.mark.parametrize("text", ["[retrieve]\nmodels = ['als', 'magic']", "[rank]\nweights = { magic = 1.0 }"])
    def test_an_unknown_model_is_named_with_the_known(self, text: str) -> None:
        """A model that jobs/models lacks is refused before any night, with all that it has."""
        message = refusal(text)

        assert "'magic'" in message
        assert ", ".join(models.names()) in message

    def test_a_model_named_twice_is_refused(self) -> None:
        """Blending a model with itself is a mistake."""
        assert "names a model twice" in refusal("[retrieve]\nmodels = ['als', 'als']")

    def test_a_file_that_is_no_toml(self) -> None:
        """The file and the place in it are named."""
        message = refusal("[als\nfactors = 3")

        assert "nightlist.toml is no valid TOML" in message
        assert "line 1" in message

    def test_a_missing_file(self) -> None:
        """It says which file is missing and how to get one."""
        with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist; `nightlist init` writes one"):
            load_settings(Path("nowhere.toml"))


class TestOverrides:
    """--set section.key=value."""

    @pytest.mark.parametrize(
        ("override", "name", "key", "value"),
        [
            ("als.factors=128", "als", "factors", 128),
            ("als.regularization=0.5", "als", "regularization", 0.5),
            ("als.alpha=1e-3", "als", "alpha", 0.001),
            ("events.use_value=true", "events", "use_value", True),
            ('retrieve.models=["popular"]', "retrieve", "models", ("popular",)),
            ("popular.segments=['country', 'birth_year']", "popular", "segments", ("country", "birth_year")),
            ("events.weights={ watch = 2 }", "events", "weights", {"watch": 2.0}),
            ("events.weights.like=3", "events", "weights", {"watch": 1.0, "like": 3.0}),
            ("dataset.scale=log", "dataset", "scale", "log"),
            ('dataset.scale="log"', "dataset", "scale", "log"),
            ("events.default_event=a = b", "events", "default_event", "a = b"),
            ("events.default_event=", "events", "default_event", ""),
            ("events.earliest=2001-02-03", "events", "earliest", date(2001, 2, 3)),
            (" als.factors = 9", "als", "factors", 9),
        ],
    )
    def test_a_value_is_toml_or_else_text(self, override: str, name: str, key: str, value: Any) -> None:
        """Numbers, truths, lists, tables and days are read as TOML; what is no TOML is text, without quotes around it."""
        loaded = load_settings(written("[events]\nweights = { watch = 1.0 }"), [override])

        assert value == getattr(getattr(loaded, name), key)

    def test_the_file_is_overridden_and_the_last_wins(self) -> None:
        """--set beats the file, and the later of two the earlier; other keys of the section stay the file's."""
        path = written("[als]\nfactors = 3\niterations = 4")
        loaded = load_settings(path, ["als.factors=5", "als.factors=6"])

        assert (6, 4) == (loaded.als.factors, loaded.als.iterations)

    @pytest.mark.parametrize("override", ["als.factors", "factors=3", "als=3", "als.=3", "=3", "", "als factors 3"])
    def test_a_malformed_override_is_shown_with_an_example(self, override: str) -> None:
        """What has no section, no key or no `=` is quoted back, with what was expected."""
        message = refusal("", override)

        assert repr(override) in message
        assert "als.factors=128" in message

    def test_a_value_is_no_section(self) -> None:
        """A key below a plain value is told so."""
        assert "factors is a value, not a section" in refusal("", "als.factors=3", "als.factors.more=1")

    @pytest.mark.parametrize(
        ("override", "said"),
        [
            ("als.factor=3", "did you mean factors?"),
            ("ls.factors=3", "did you mean als?"),
            ("als.factors=[1", "als.factors = '[1'"),
        ],
    )
    def test_an_override_is_checked_like_the_file(self, override: str, said: str) -> None:
        """Unknown keys and bad values are named as if they stood in the file."""
        assert said in refusal("", override)


class TestEnvironment:
    """NIGHTLIST_SECTION__KEY."""

    def test_it_sets_what_the_file_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key that the file leaves out comes from the environment, beside the file's others of that section."""
        monkeypatch.setenv("NIGHTLIST_STORE__KEEP", "7")
        loaded = load_settings(written("[store]\ngrace_seconds = 5"))

        assert (7, 5.0) == (loaded.store.keep, loaded.store.grace_seconds)

    def test_it_overrules_the_file_for_jobs_and_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the environment says counts more than the file, and jobs and service never differ in where the store is."""
        monkeypatch.setenv("NIGHTLIST_STORE__PATH", "/elsewhere")
        path = written('[store]\npath = "here"\nkeep = 5')

        (store, _), loaded = load_service_settings(path), load_settings(path).store

        assert (Path("/elsewhere"), 5) == (loaded.path, loaded.keep)
        assert loaded == store

    def test_the_command_line_beats_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """--set is nearer than the environment."""
        monkeypatch.setenv("NIGHTLIST_STORE__KEEP", "7")

        assert 9 == load_settings(written(""), ["store.keep=9"]).store.keep

    def test_the_variable_that_names_the_file_is_no_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """NIGHTLIST_CONFIG has the same beginning, and is no unknown key."""
        monkeypatch.setenv("NIGHTLIST_CONFIG", "elsewhere.toml")

        assert 3 == load_settings(written("")).store.keep

    @pytest.mark.parametrize(
        ("variable", "value", "said"),
        [
            ("NIGHTLIST_STORE__KEEP", "few", "store.keep = 'few'"),
            ("NIGHTLIST_STORE__KEEPP", "7", "did you mean keep?"),
            ("NIGHTLIST_EVENTS__WEIGHTS", "watch", "environment: "),
        ],
    )
    def test_it_is_checked_like_the_file(
        self, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
    ) -> None:
        """A variable that can't be used is a configuration error, not a traceback."""
        monkeypatch.setenv(variable, value)

        assert said in refusal("")


def other(annotation: Any, value: Any) -> Any:
    """Another value of the field's type."""
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if get_origin(annotation) is dict:
        return {"another": 3.5 if get_args(annotation)[1] is float else "more"}
    if get_origin(annotation) is tuple:
        entry = get_args(annotation)[0]
        return (
            entry.model_construct(reason="another", where="true")
            if isinstance(entry, type) and issubclass(entry, BaseModel)
            else "other",
        )
    if isinstance(value, BaseModel):
        return value.model_copy(update={"warn": 0.123})
    if isinstance(value, bool):
        return not value
    if isinstance(value, date):
        return value + timedelta(days=1)
    if isinstance(value, Path):
        return value / "another"
    return value + 1 if isinstance(value, int | float) else f"{value}another"


def changed(settings: RootSettings, name: str, key: str) -> RootSettings:
    """The settings with another value in one place."""
    values = getattr(settings, name)
    value = other(section(name).model_fields[key].annotation, getattr(values, key))
    return settings.model_copy(update={name: values.model_copy(update={key: value})})


def has_another(name: str, key: str) -> bool:
    """Whether the field's type has more than one value."""
    annotation = section(name).model_fields[key].annotation
    return get_origin(annotation) is not Literal or len(get_args(annotation)) > 1


class TestDigest:
    """Which settings make another run."""

    @of_every([pair for pair in FIELDS if has_another(*pair)])
    def test_it_covers_what_can_change_a_list(self, name: str, key: str) -> None:
        """Another value in any field makes another digest, but in [store], [serve], [auth], [spark], [paths], [gate] and input paths."""
        settings = load_settings(None)
        another = changed(settings, name, key)
        free = name in CHANGES_NO_LIST or (name == "input" and key in INPUT_PATHS)

        assert free == (digest_of(settings) == digest_of(another))

    def test_it_knows_no_order_and_no_place(self, tmp_path: Path) -> None:
        """Two files that say the same in another order, in two folders, have one digest; so have a default and its being said."""
        text = "[als]\nfactors = 8\n[events]\nweights = {{ {} }}"
        (tmp_path / "elsewhere").mkdir()
        elsewhere = tmp_path / "elsewhere" / "nightlist.toml"
        elsewhere.write_text(text.format("like = 2, watch = 1") + "\n[popular]\nmin_users = 20")
        one, same = load_settings(written(text.format("watch = 1, like = 2"))), load_settings(elsewhere)

        assert one != same
        assert digest_of(one) == digest_of(same)

    def test_a_password_of_the_input_makes_no_other_run(self) -> None:
        """Who reads is not what is read: only the options that say what count."""
        one, other, elsewhere = (
            load_settings(None, [f'input.options={{ password = "{password}", url = "{url}" }}'])
            for password, url in (("a", "db"), ("b", "db"), ("a", "db2"))
        )

        assert digest_of(one) == digest_of(other)
        assert digest_of(one) != digest_of(elsewhere)

    def test_the_order_of_models_is_a_setting(self) -> None:
        """The models to retrieve by are a list, and another order is another setting."""
        one, other = (
            load_settings(None, [f"retrieve.models={names}"]) for names in (["als", "popular"], ["popular", "als"])
        )

        assert digest_of(one) != digest_of(other)


class TestPaths:
    """Relative paths count from the file."""

    def test_from_the_files_folder(self) -> None:
        """Tables, runs and store lie beside the file, wherever the command was started."""
        path = written("[input]\nevents = 'e.csv'\nitems = '../i.csv'\n[paths]\nruns = 'r'\n[store]\npath = 's'")
        loaded, base = load_settings(path), path.parent

        assert (str(base / "e.csv"), str(base.parent / "i.csv")) == (loaded.input.events, loaded.input.items)
        assert (base / "r", base / "s") == (loaded.paths.runs, loaded.store.path)
        assert (None, None) == (loaded.input.users, loaded.input.blocks)

    def test_absolute_paths_and_schemes_stay(self) -> None:
        """What names its place already is left alone."""
        path = written("[input]\nevents = 's3a://bucket/events'\nitems = '/data/items'\n[store]\npath = '/data/store'")
        loaded = load_settings(path)

        assert ("s3a://bucket/events", "/data/items") == (loaded.input.events, loaded.input.items)
        assert Path("/data/store") == loaded.store.path

    def test_the_service_finds_the_same_store(self) -> None:
        """Jobs and service resolve [store] alike."""
        path = written("[store]\npath = '../s'\nkeep = 5\n[serve]\nport = 9000")
        store, serve = load_service_settings(path)
        loaded = load_settings(path)

        assert (loaded.store, loaded.serve) == (store, serve)


class TestService:
    """The service looks at two sections only."""

    def test_other_sections_are_not_looked_at(self) -> None:
        """What jobs refuse in their own sections is nothing to the service, which may run without them."""
        path = written("[als]\nfactor = 'many'\n[magic]\nx = 1\n[serve]\ndefault_n = 5")
        _, serve = load_service_settings(path)

        assert ServeSettings(default_n=5) == serve
        with pytest.raises(ConfigError, match=r"als\.factor"):
            load_settings(path)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("[store]\nkep = 5", "unknown key store.kep (did you mean keep?)"),
            ("[serve]\nprot = 80", "unknown key serve.prot (did you mean port?)"),
            ("[serve]\nport = 0", "serve.port = 0"),
            ("serve = 5", "serve = 5"),
        ],
    )
    def test_its_own_are_checked_in_the_same_words(self, text: str, said: str) -> None:
        """A mistake in [store] or [serve] is named by the service as it is by jobs."""
        with pytest.raises(ConfigError) as caught:
            load_service_settings(written(text))

        assert said in str(caught.value)
        assert said in refusal(text)

    def test_without_its_sections_it_has_the_defaults(self) -> None:
        """An empty file is enough."""
        path = written("")
        store, serve = load_service_settings(path)

        assert ServeSettings() == serve
        assert StoreSettings(path=path.parent / "nightlist-data/store") == store


def uncommented(text: str) -> str:
    """The template with every default in force, but for those of None, which TOML can't say, and the example of a rule."""
    absent = {(name, key) for name, key in FIELDS if section(name).model_fields[key].default is None}
    return "\n".join(_lines(text.partition("#[[events.reject]]"), absent))


def _lines(parts: tuple[str, str, str], absent: set[tuple[str, str]]) -> Iterator[str]:
    before, _, after = parts
    example, rest = after.split("\n\n", 1)
    assert len(example.strip().splitlines()) == 2
    name = ""
    for line in (before + rest).splitlines():
        name = found[1] if (found := re.fullmatch(r"\[([\w.]+)\]", line)) else name
        setting = re.match(r"#?(\w+) = ", line)
        yield line.removeprefix("#") if setting and (name, setting[1]) not in absent else line


class TestInit:
    """`nightlist init`."""

    def invoked(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["init", *arguments])

    def test_the_template_says_the_defaults(self) -> None:
        """As it is written, the file changes nothing."""
        assert load_settings(None) == load_settings(self.in_place(template()))

    def test_every_line_of_the_template_is_the_default(self) -> None:
        """With the # taken from every setting, the file still changes nothing, so that each line shows the truth."""
        text = uncommented(template())

        assert load_settings(None) == load_settings(self.in_place(text))
        assert len(IN_TEMPLATE) - 3 == len(re.findall(r"(?m)^\w+ = ", text))  # [input] items, users, blocks: none

    @of_every(IN_TEMPLATE)
    def test_every_setting_is_in_it(self, name: str, key: str) -> None:
        """Each setting stands once in its section, below its description."""
        (body,) = re.findall(rf"(?ms)^\[{re.escape(name)}\]\n(.*?)(?=^\[|\Z)", template())
        description = section(name).model_fields[key].description
        assert description
        last_line = re.escape(description.strip().splitlines()[-1].strip())

        assert 1 == len(re.findall(rf"(?m)^# {last_line}\n#?{key} = ", body))

    def test_the_example_of_a_rule_can_be_used(self) -> None:
        """The commented [[events.reject]] is valid as it stands, in its place."""
        rule = r"(?m)^#(?=\[\[events\.reject\]\]|reason = |where = )"
        (found,) = load_settings(self.in_place(re.sub(rule, "", template()))).events.reject

        assert ("cancelled", "InvoiceNo LIKE 'C%'") == (found.reason, found.where)

    def test_it_writes_the_template_into_a_new_folder(self) -> None:
        """The file holds the template, and the command says what comes next."""
        result = self.invoked("--config", "new/folder/nightlist.toml")

        assert 0 == result.exit_code
        assert template() == Path("new/folder/nightlist.toml").read_text(encoding="utf-8")
        assert "nightlist validate --config new/folder/nightlist.toml" in result.stderr

    def test_it_overwrites_nothing(self) -> None:
        """An existing file stays as it is, and the command fails with 2 and names the way out."""
        path = written("[als]\nfactors = 3")
        result = self.invoked("--config", str(path))

        assert 2 == result.exit_code
        assert "[als]\nfactors = 3" == path.read_text(encoding="utf-8")
        assert str(path) in result.stderr
        assert "--force" in result.stderr
        assert "Traceback" not in result.output

    def test_forced_it_does(self) -> None:
        """With --force the file is the template."""
        path = written("[als]\nfactors = 3")

        assert 0 == self.invoked("--config", str(path), "--force").exit_code
        assert template() == path.read_text(encoding="utf-8")

    def in_place(self, text: str) -> Path:
        """The text as the nightlist.toml of the working folder, from which defaults count too."""
        path = Path.cwd() / "nightlist.toml"
        path.write_text(text, encoding="utf-8")
        return path


class TestTables:
    """Tables that are no files."""

    def test_their_names_stay_as_they_are(self) -> None:
        """A path counts from the file; the name of a table in a catalogue or a database does not."""
        text = "[input]\nevents = 'shop.events'\nformat = '{}'"
        named = {
            kind: load_settings(written(text.format(kind))).input.events for kind in ("iceberg", "jdbc", "orc", "")
        }

        assert {"iceberg": "shop.events", "jdbc": "shop.events"} == {kind: named[kind] for kind in ("iceberg", "jdbc")}
        assert named["orc"] == named[""] == str(Path.cwd() / "configured" / "shop.events")


class TestSecrets:
    """The password of Cassandra comes from the environment or a file, and shows up nowhere."""

    def test_it_is_read_from_a_file_beside_the_configuration(self) -> None:
        """Without the newline that every editor adds; jobs and service alike."""
        path = written("[store]\nbackend = 'cassandra'\n[store.cassandra]\npassword_file = 'secret'")
        (path.parent / "secret").write_text("swordfish\n")

        for store in (load_settings(path).store, load_service_settings(path)[0]):
            assert "swordfish" == store.cassandra.password.get_secret_value()

    def test_the_environment_overrules_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for every other setting."""
        monkeypatch.setenv("NIGHTLIST_STORE__CASSANDRA__PASSWORD", "swordfish")
        store = load_settings(written("[store.cassandra]\npassword = 'guest'\nusername = 'u'")).store

        assert ("u", "swordfish") == (store.cassandra.username, store.cassandra.password.get_secret_value())

    def test_a_file_that_is_missing_is_named(self) -> None:
        """Where Cassandra is what lists go to; elsewhere nobody looks for it."""
        unused = "[store.cassandra]\npassword_file = 'nowhere'"
        assert "sqlite" == load_settings(written(unused)).store.backend
        message = refusal("[store]\nbackend = 'cassandra'\n" + unused)

        assert "store.cassandra.password_file" in message
        assert "nowhere" in message

    def test_it_is_not_printed(self) -> None:
        """Neither the settings' text nor an error about their section holds it."""
        text = "[store.cassandra]\npassword = 'swordfish'"

        assert "swordfish" not in repr(load_settings(written(text)))
        assert "swordfish" not in refusal(f"{text}\nprot = 1")
        assert "76543" not in refusal("[store.cassandra]\npassword = 76543")
        assert "76543" not in refusal("[serve]\nlog_key = 76543")

    def test_it_is_not_given_on_the_command_line(self) -> None:
        """Others on the machine read that, and Spark shows it; where its file is may be said there."""
        with pytest.raises(ConfigError) as caught:
            load_settings(written(""), ["store.cassandra.password=swordfish"])

        assert "swordfish" not in str(caught.value)
        assert "environment" in str(caught.value)
        assert (
            load_settings(written(""), ["store.cassandra.password_file=here"]).store.cassandra.password_file == "here"
        )

    def test_what_is_given_wins_over_the_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that an administrator needs no other configuration than the night."""
        monkeypatch.setenv("NIGHTLIST_STORE__CASSANDRA__PASSWORD", "swordfish")
        text = "[store]\nbackend = 'cassandra'\n[store.cassandra]\npassword_file = 'nowhere'"

        assert "swordfish" == load_settings(written(text)).store.cassandra.password.get_secret_value()

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import pytest

from diptych.core.config import Config, Within
from diptych.core.config_compare import differences
from diptych.core.errors import UserError, pick


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    kind: Literal["inner"] = "inner"
    width: int = 64
    rate: float = 0.1

    def check(self) -> None:
        self.require(self.width > 0, "width", "be above 0")


@dataclass(frozen=True, kw_only=True)
class Other(Config):
    kind: Literal["other", "older"] = "other"
    depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Sample(Config):
    name: str = "x"
    steps: int = 1000
    rate: float = 1e-4
    fast: bool = False
    note: str | None = None
    clip: float | None = 1.0
    mode: Literal["none", "min-snr"] = "none"
    level: Literal[1, 2] = 1
    size: int | Literal["auto"] = "auto"
    share: float | int = 1
    widths: tuple[int, ...] = (1, 2)
    pair: tuple[int, str] = (1, "a")
    some: tuple[int, ...] | None = None
    words: tuple[str, ...] = ()
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    anything: Any = None
    inner: Inner = dataclasses.field(default_factory=Inner)
    either: Inner | Other = dataclasses.field(default_factory=Inner)
    maybe: Inner | None = None
    parts: tuple[Inner | Other, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Needs(Config):
    path: str
    low: int = 0
    high: int = 1

    def check(self) -> None:
        self.require(self.low < self.high, "low", f"be below high ({self.high})")


@pytest.mark.parametrize(
    ("assignment", "field", "value"),
    [
        ("name=5", "name", "5"),
        ("name=none", "name", "none"),
        ("name=", "name", ""),
        ("name=a=b", "name", "a=b"),
        ("name=[1]", "name", "[1]"),
        ("steps=12", "steps", 12),
        ("steps=-3", "steps", -3),
        ("rate=1e-5", "rate", 1e-5),
        ("rate=.5", "rate", 0.5),
        ("rate=2", "rate", 2.0),
        ("fast=true", "fast", True),
        ("fast=False", "fast", False),
        ("note=none", "note", None),
        ("note=5", "note", "5"),
        ("clip=None", "clip", None),
        ("clip=2", "clip", 2.0),
        ("mode=none", "mode", "none"),
        ("mode=min-snr", "mode", "min-snr"),
        ("level=2", "level", 2),
        ("size=32", "size", 32),
        ("size=auto", "size", "auto"),
        ("widths=1,2,4", "widths", (1, 2, 4)),
        ("widths=[3, 4]", "widths", (3, 4)),
        ("widths=7", "widths", (7,)),
        ("widths=", "widths", ()),
        ("pair=3,b", "pair", (3, "b")),
        ("some=1,2", "some", (1, 2)),
        ("some=none", "some", None),
        ("words=none,5,red apple", "words", ("none", "5", "red apple")),
        ('words=["a,b"]', "words", ("a,b",)),
        ('table={"a": 1}', "table", {"a": 1}),
        ("anything=[1, 2]", "anything", [1, 2]),
        ("anything=word", "anything", "word"),
        ('inner={"width": 8}', "inner", Inner(width=8)),
        ("inner.width=8", "inner", Inner(width=8)),
        ("either.rate=1", "either", Inner(rate=1.0)),
        ('either={"kind": "older", "depth": 3}', "either", Other(kind="older", depth=3)),
        ("maybe.width=8", "maybe", Inner(width=8)),
        ('parts=[{"kind": "other"}, {"kind": "inner", "width": 2}]', "parts", (Other(), Inner(width=2))),
    ],
)
def test_an_override_is_read_as_the_type_of_its_field(assignment: str, field: str, value: Any) -> None:
    changed = Sample().override([assignment])
    assert getattr(changed, field) == value
    assert type(getattr(changed, field)) is type(value)
    for other in dataclasses.fields(Sample):
        if other.name != field:
            assert getattr(changed, other.name) == getattr(Sample(), other.name)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("steps", "write it as field=value"),
        ("=5", "write it as field=value"),
        ("stepz=5", "no field 'stepz'"),
        ("inner.widht=5", "no field 'widht' in 'inner.widht': choose one of kind, width, rate"),
        ("steps.more=5", "no fields of its own"),
        ("table.a=5", "no fields of its own"),
        ("steps=many", "steps must be a whole number, not 'many'"),
        ("steps=1.5", "steps must be a whole number"),
        ("steps=true", "steps must be a whole number"),
        ("rate=nan", "rate must be a number"),
        ("rate=", "rate must be a number"),
        ("fast=1", "fast must be true or false"),
        ("clip=x", "clip must be a number or none"),
        ("mode=max", "mode must be one of none, min-snr, not 'max'"),
        ("level=3", "level must be one of 1, 2"),
        ("size=big", "size must be a whole number or one of auto"),
        ("widths=1,x", "widths must be a whole number, not 'x'"),
        ("widths=[1, 2", "widths must be a list"),
        ("pair=1,b,2", "pair must have 2 values, not 3"),
        ("inner=5", "inner must be an object"),
        ("inner.width=0", "Inner.width must be above 0, not 0"),
        ("either.depth=3", "no field 'depth'"),
        ('either={"kind": "neither"}', "either.kind must be one of inner, other, older, not 'neither'"),
        ('either={"kind": "other", "width": 1}', "either has no field 'width'"),
        ('table={"a": "b"}', "table.a must be a whole number"),
        ('parts=[{"kind": "inner", "width": "w"}]', "parts.width must be a whole number"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_field(assignment: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Sample().override([assignment])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_of_several_overrides_holds_and_the_original_stays() -> None:
    first = Sample()
    assert first.override(["steps=1", "inner.width=2", "steps=3", "inner.rate=4"]) == dataclasses.replace(
        first, steps=3, inner=Inner(width=2, rate=4.0)
    )
    assert first == Sample()
    assert first.override([]) == first


def test_a_part_given_whole_can_be_refined_further() -> None:
    changed = Sample().override(['either={"kind": "other"}', "either.depth=9"])
    assert changed.either == Other(depth=9)


def test_fields_that_must_fit_each_other_can_change_together() -> None:
    assert Needs(path="p").override(["low=5", "high=9"]) == Needs(path="p", low=5, high=9)
    with pytest.raises(UserError, match=r"Needs\.low must be below high \(1\), not 5"):
        Needs(path="p").override(["low=5"])


def test_a_saved_config_comes_back_equal() -> None:
    config = Sample(
        note="ü\n",
        some=(3,),
        table={"a": 1},
        either=Other(kind="older"),
        maybe=Inner(width=3),
        parts=(Inner(), Other(depth=5)),
        anything={"a": [1, None]},
    )
    again = Sample.from_dict(json.loads(config.to_json()))
    assert again == config
    assert isinstance(again.parts, tuple) and isinstance(again.either, Other)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": "5"}, "Sample.steps must be a whole number, not '5'"),
        ({"steps": True}, "Sample.steps must be a whole number"),
        ({"steps": None}, "Sample.steps must be a whole number, not None"),
        ({"rate": float("nan")}, "Sample.rate must be a number"),
        ({"level": True}, "Sample.level must be one of 1, 2"),
        ({"stepz": 5}, "Sample has no field 'stepz': choose one of name, steps"),
        ({"inner": {"widht": 5}}, "Sample.inner has no field 'widht'"),
        ({"inner": 5}, "Sample.inner must be an object"),
        ({"either": {"width": 5}}, "Sample.either.kind must be one of inner, other, older, not None"),
        ({"widths": "12"}, "Sample.widths must be a list"),
        ({"pair": [1]}, "Sample.pair must have 2 values, not 1"),
        ([], "Sample must be an object with fields"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_field(values: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Sample.from_dict(values)
    assert says in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(UserError, match="Needs lacks the field 'path'"):
        Needs.from_dict({"low": 0})


def test_values_are_checked_and_made_exact_when_written_in_python() -> None:
    config = Sample(rate=1, widths=[1, 2], inner={"width": 3})  # type: ignore[arg-type]
    assert (config.rate, config.widths, config.inner) == (1.0, (1, 2), Inner(width=3))
    assert isinstance(config.rate, float)
    assert type(Sample(share=1).share) is int and type(Sample(share=1.0).share) is float
    with pytest.raises(UserError, match=r"Sample\.steps must be a whole number, not '5'"):
        Sample(steps="5")  # type: ignore[arg-type]


def test_an_error_of_the_program_is_not_taken_for_one_of_the_user() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Broken(Config):
        def check(self) -> None:
            len(5)  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        Broken.from_dict({})


def test_pick_lists_what_there_is() -> None:
    assert pick("sampler", "b", ["b", "a"]) == "b"
    with pytest.raises(UserError, match="unknown sampler 'c': choose one of a, b"):
        pick("sampler", "c", {"b": 1, "a": 2})


def subclasses(cls: type[Config]) -> Iterator[type[Config]]:
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("diptych.") and dataclasses.is_dataclass(sub):
            yield sub
        yield from subclasses(sub)


def number_fields() -> Iterator[tuple[type[Config], str]]:
    """Each field of each config of diptych's that may be a number."""
    import diptych.networks.bert_network
    import diptych.recipes.papers.adm
    import diptych.training.experiment  # bring all of them  # noqa: F401

    for cls in dict.fromkeys(subclasses(Config)):
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}:
                yield cls, field.name


def test_no_number_of_any_config_may_be_absurd() -> None:
    fields = list(number_fields())
    assert len(fields) > 100
    for cls, name in fields:
        for value in (10**30, -(10**30), 10**12 if name != "seed" else 2**64, 1e300, math.inf):
            with pytest.raises(UserError, match=name):
                cls(**{name: value, **({"description": "d"} if cls.__name__ == "Recipe" else {})})


BELOW_ZERO = {"guidance", "mean", "lambda_min", "seed"}
"""Numbers that may be negative."""


def test_numbers_that_count_or_weigh_are_not_negative() -> None:
    for cls, name in number_fields():
        given = {"description": "d"} if cls.__name__ == "Recipe" else {}
        for value in (-1, -0.5) if name not in BELOW_ZERO else ():
            with pytest.raises(UserError, match=name):
                cls(**{name: value, **given})


def test_a_field_states_its_bounds() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Bounded(Config):
        most = 50
        seed: Annotated[int, Within(0, 2**63)] = 0
        parts: Annotated[tuple[int, ...], Within(1)] = (1,)
        free: float = 0.0

    assert Bounded(seed=2**63, parts=(1, 50), free=-50).override(["seed=7", "parts=2,3"]).parts == (2, 3)
    assert Bounded.from_dict(Bounded(seed=2**62).to_dict()).seed == 2**62
    for changes, text in (
        ({"seed": 2**63 + 1}, r"seed must lie between 0 and 9,223,372,036,854,775,808, not 9223372036854775809"),
        ({"parts": (1, 0)}, r"parts must lie between 1 and 50, not 0"),
        ({"free": 50.5}, r"free must lie between -50 and 50, not 50\.5"),
    ):
        with pytest.raises(UserError, match=text):
            Bounded(**changes)


@dataclass(frozen=True, kw_only=True)
class Encoder(Config):
    renamed: ClassVar[dict[str, str]] = {"breadth": "width"}
    width: int = 8


@dataclass(frozen=True, kw_only=True)
class System(Config):
    renamed: ClassVar[dict[str, str]] = {"reader": "encoder", "start": "init_from"}
    encoder: Encoder | None = None
    init_from: str | None = None


def test_former_names_of_fields_are_read() -> None:
    now = System(encoder=Encoder(width=3), init_from="run")
    assert System.from_dict({"reader": {"breadth": 3}, "start": "run"}) == now
    assert System().override(["reader.breadth=3", "start=run"]) == now
    assert now.to_dict() == {"encoder": {"width": 3}, "init_from": "run"}


def test_both_names_of_a_field_are_an_error() -> None:
    with pytest.raises(UserError, match=r"System\.encoder has 'breadth' and 'width', .* give 'width' alone"):
        System.from_dict({"reader": {"breadth": 3, "width": 3}})


def test_differences_compare_by_present_names() -> None:
    now = System(encoder=Encoder(width=3), init_from="run")
    assert list(differences({"reader": {"breadth": 3}, "start": "run"}, now)) == []
    assert list(differences({"reader": {"breadth": 4}, "start": "run"}, now)) == [("encoder.width", 4, 3)]

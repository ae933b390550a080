"""Every answer that was acknowledged is on the disk, once, and can be one of the rater's."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from diptych.core.errors import UserError
from diptych.evaluation.human.answer_store import DATABASE, AnswerStore, BadAnswer, GivenAnswer
from diptych.evaluation.human.rater_plans import plan_rater, shown_tasks
from diptych.evaluation.human.study_file import read_study

NONCE = "0123456789abcdef" * 2
WRITER = """
import sys
from pathlib import Path
from diptych.evaluation.human.answer_store import AnswerStore, GivenAnswer
store = AnswerStore(Path(sys.argv[1]))
rater = store.raters(1)[0]
question = store.study.task[rater.plan.tasks[0]].asks[0].id
for number in range(10**6):
    store.add(rater, [GivenAnswer(f"{number:032x}", question, "AB"[number % 2], number)])
    print(number, flush=True)
"""


def first_question(store: AnswerStore) -> str:
    return store.study.task[store.raters(1)[0].plan.tasks[0]].asks[0].id


def test_raters_take_the_batches_in_turn(coco: Path) -> None:
    study = read_study(coco)
    plans = [plan_rater(study, number) for number in range(2 * len(study.batches))]
    assert Counter(plan.batch for plan in plans) == dict.fromkeys(range(len(study.batches)), 2)
    for plan in plans:
        batch = study.batches[plan.batch]
        assert sorted(plan.tasks) == sorted((*batch.tasks, *batch.controls))
        if batch.part == "photorealism":  # half of four, and half of the two controls
            of_controls = [
                flip for name, flip in zip(plan.tasks, plan.flipped, strict=True) if study.task[name].control
            ]
            assert sum(plan.flipped) == 3 and sum(of_controls) == 1
        else:
            assert not any(plan.flipped)
    assert plans[0].tasks != plans[len(study.batches)].tasks  # an order of their own
    assert plans == [plan_rater(study, number) for number in range(2 * len(study.batches))]


def test_controls_are_spread(coco: Path) -> None:
    """One in each half of the batch, somewhere."""
    study = read_study(coco)
    places = set()
    for number in range(60):
        plan = plan_rater(study, number)
        controls = set(study.batches[plan.batch].controls)
        found = [n for n, name in enumerate(plan.tasks) if name in controls]
        assert len(found) == 2 and found[0] < 3 <= found[1]
        places.update(found)
    assert places == set(range(6))


def test_a_rater_sees_no_model_and_no_control(drawbench: Path) -> None:
    study = read_study(drawbench)
    text = str([shown_tasks(study, plan_rater(study, number)) for number in range(6)])
    for word in ("alpha", "beta", "gamma", "control", "correct", "degraded", "Colors"):
        assert word not in text


def test_an_answer_is_stored_once(coco: Path) -> None:
    store = AnswerStore(coco)
    (rater,) = store.raters(1)
    answer = GivenAnswer(NONCE, first_question(store), "A", 5)
    assert [store.add(rater, [answer]), store.add(rater, [answer, answer])] == [1, 0]
    with pytest.raises(BadAnswer, match="same nonce"):
        store.add(rater, [answer._replace(choice="B")])
    assert store.answers_of(rater) == {answer.question: "A"}
    later = answer._replace(nonce=NONCE[::-1], choice="B")  # a change of mind
    assert store.add(rater, [later]) == 1 and store.answers_of(rater) == {answer.question: "B"}
    assert store.add(rater, [answer]) == 0 and store.answers_of(rater) == {answer.question: "B"}  # the first, late
    assert [row[:3] for row in store.last_answers()] == [(0, answer.question, "B")]


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": ""},
        {"nonce": NONCE.upper()},
        {"nonce": None},
        {"question": "none"},
        {"question": ["x"]},
        {"choice": "C"},
        {"choice": "indifferent"},
        {"choice": None},
        {"milliseconds": -1},
        {"milliseconds": 10**12},
        {"milliseconds": 1.5},
        {"milliseconds": True},
    ],
)
def test_an_answer_that_cannot_be_is_refused_and_the_others_with_it(coco: Path, change: dict[str, object]) -> None:
    store = AnswerStore(coco)
    (rater,) = store.raters(1)
    good = GivenAnswer(NONCE, first_question(store), "A", 5)
    with pytest.raises(BadAnswer):
        store.add(rater, [good, good._replace(**{"nonce": NONCE[::-1], **change})])  # type: ignore[arg-type]
    assert not store.last_answers()


def test_a_question_of_another_rater_is_refused(coco: Path) -> None:
    store = AnswerStore(coco)
    one, *_, other = store.raters(10)
    question = store.study.task[one.plan.tasks[0]].asks[0].id
    assert store.study.task[one.plan.tasks[0]].id not in other.plan.tasks
    with pytest.raises(BadAnswer, match="not asked"):
        store.add(other, [GivenAnswer(NONCE, question, "A", 5)])


def test_links_stay_and_raters_are_added(coco: Path) -> None:
    store = AnswerStore(coco)
    tokens = [rater.token for rater in store.raters(3)]
    store.close()
    store = AnswerStore(coco)
    again = store.raters(5)
    assert [rater.token for rater in again][:3] == tokens and len(again) == 5 == len(store.raters(2))
    assert len({word for rater in again for word in (rater.token, rater.code)}) == 10
    found = store.by_token(tokens[1])
    assert found is not None and found.number == 1 and store.by_token(again[1].code) is None


def test_the_file_is_the_owners_alone(coco: Path) -> None:
    AnswerStore(coco).close()
    assert stat.S_IMODE((coco / DATABASE).stat().st_mode) == 0o600


def test_a_file_that_is_no_database_and_a_link_are_one_line(coco: Path, tmp_path: Path) -> None:
    path = coco / DATABASE
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="cannot be opened"):
        AnswerStore(coco)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        AnswerStore(coco)


def test_answers_to_another_study_are_refused(coco: Path, drawbench: Path) -> None:
    AnswerStore(coco).close()
    (coco / "study.json").write_bytes((drawbench / "study.json").read_bytes())
    with pytest.raises(UserError, match="another study"):
        AnswerStore(coco)


def test_threads_write_side_by_side(coco: Path) -> None:
    store = AnswerStore(coco)
    (rater,) = store.raters(1)
    question = first_question(store)

    def write(part: int) -> None:
        for number in range(20):
            store.add(rater, [GivenAnswer(f"{part:016x}{number:016x}", question, "A", number)])

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sqlite3.connect(coco / DATABASE) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (80,)


def test_what_was_acknowledged_survives_a_kill(coco: Path) -> None:
    """The process is killed in the middle of writing; all that it said was saved is there, and the file is sound."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(coco)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = -1
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 25:
                os.kill(process.pid, signal.SIGKILL)
    assert acknowledged >= 25
    store = AnswerStore(coco)
    with sqlite3.connect(coco / DATABASE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        nonces = [int(nonce, 16) for (nonce,) in connection.execute("SELECT nonce FROM answers ORDER BY sequence")]
    assert nonces == list(range(len(nonces))) and len(nonces) > acknowledged
    assert len(store.last_answers()) == 1


def test_the_log_is_synced_at_each_answer(coco: Path) -> None:
    store = AnswerStore(coco)
    settings = [store._rows(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]  # 2 is FULL

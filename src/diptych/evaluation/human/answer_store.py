"""The answers of a study in SQLite: each is on the disk before the rater hears that it is saved."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diptych.core.errors import UserError
from diptych.evaluation.human.questions import QUESTIONS
from diptych.evaluation.human.rater_plans import RaterPlan, plan_rater
from diptych.evaluation.human.study_file import HumanStudy, read_study
from diptych.serving.tokens import new_token

DATABASE = "answers.sqlite"
SERVER = "server"
"""Where answers came from that came in no file."""
LONGEST = 7 * 24 * 3600 * 1000
"""Milliseconds of an answer that are believed."""
NONCE = re.compile(r"[0-9a-f]{32}")
TABLES = """
CREATE TABLE IF NOT EXISTS study (id TEXT NOT NULL, version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS raters (
  number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, code TEXT NOT NULL UNIQUE, plan TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT, rater INTEGER NOT NULL REFERENCES raters, nonce TEXT NOT NULL,
  question TEXT NOT NULL, choice TEXT NOT NULL, milliseconds INTEGER NOT NULL, at TEXT NOT NULL, came TEXT NOT NULL,
  UNIQUE (rater, nonce));
"""


class GivenAnswer(NamedTuple):
    """One answer as the page sends it."""

    nonce: str
    """32 hexadecimal digits, new for each answer and the same when it is sent again."""
    question: str
    choice: str
    """As shown: `A` is what was on the left."""
    milliseconds: int
    """From the images' appearance to the answer."""


@dataclass(frozen=True)
class Rater:
    """Someone who answers."""

    number: int
    token: str
    """Of the link to the server."""
    code: str
    """Of the exported page and the file that comes back from it: the server does not take it for a token."""
    plan: RaterPlan


class BadAnswer(UserError):
    """An answer that this rater cannot give."""


class AnswerStore:
    """Raters and answers of the study in a folder; several processes may have it open.

    Answers are appended and never changed: of several to one question the last counts. Write-ahead log and
    synchronous=FULL: what `add` has returned for survives kill -9 and a power failure.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, read_study(folder)
        self._lock = threading.Lock()
        path = folder / DATABASE
        if path.is_symlink():
            raise UserError(f"{path} is a link: answers are kept in the study's own folder")
        try:
            with contextlib.suppress(FileExistsError):  # tokens are nobody else's to read
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            with self._writing() as write:
                for statement in TABLES.split(";"):
                    write(statement)
                known = write("SELECT id FROM study").fetchall()
                if not known:
                    write("INSERT INTO study VALUES (?, 1)", (self.study.id,))
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"{path} cannot be opened: {error}") from None
        if known and known[0][0] != self.study.id:
            raise UserError(f"{path} holds answers to another study than {folder / 'study.json'}: put that one back")

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        """One transaction, which is whole on the disk when it ends without an error."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()

    def raters(self, least: int = 0) -> list[Rater]:
        """All raters; first as many are added as are missing to `least`."""
        with self._writing() as write:
            (count,) = write("SELECT count(*) FROM raters").fetchone()
            for number in range(count, least):
                plan = json.dumps(plan_rater(self.study, number).to_json())
                write("INSERT INTO raters VALUES (?, ?, ?, ?)", (number, new_token(), new_token(), plan))
        return [_rater(row) for row in self._rows("SELECT number, token, code, plan FROM raters ORDER BY number")]

    def by_token(self, token: str) -> Rater | None:
        """The rater of a link. The token is looked up by an index, whose time says nothing of the others' letters."""
        rows = self._rows("SELECT number, token, code, plan FROM raters WHERE token = ?", (token,))
        return _rater(rows[0]) if rows else None

    def by_code(self, code: str) -> Rater | None:
        rows = self._rows("SELECT number, token, code, plan FROM raters WHERE code = ?", (code,))
        return _rater(rows[0]) if rows else None

    def add(self, rater: Rater, answers: Iterable[GivenAnswer], came: str = SERVER) -> int:
        """Append answers, all or none, and return how many were new: one whose nonce is known is not stored again.

        came: where they came from: "server", or the name of a file.

        Raises `BadAnswer` for a question that the rater is not asked, a choice that it does not have, and the like.
        """
        return self.add_all([(rater, list(answers), came)])[0]

    def add_all(self, parts: Sequence[tuple[Rater, Sequence[GivenAnswer], str]]) -> list[int]:
        """`add` for (rater, answers, where they came from) of several raters or files: all of it or nothing."""
        for rater, answers, _ in parts:
            for answer in answers:
                check_answer(self.study, rater.plan, answer)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        with self._writing() as write:
            return [
                sum(_append(write, rater, answer, now, came) for answer in answers) for rater, answers, came in parts
            ]

    def answers_of(self, rater: Rater) -> dict[str, str]:
        """Question -> choice, as shown to this rater."""
        query = "SELECT question, choice FROM answers WHERE rater = ? ORDER BY sequence"
        return dict(self._rows(query, (rater.number,)))  # later ones replace earlier ones

    def last_answers(self) -> list[tuple[int, str, str, int, str, str]]:
        """(rater, question, choice as shown, milliseconds, time, where from) of each answer that counts."""
        return self._rows(  # type: ignore[return-value]
            "SELECT rater, question, choice, milliseconds, at, came FROM answers WHERE sequence IN "
            "(SELECT max(sequence) FROM answers GROUP BY rater, question) ORDER BY sequence"
        )


def _append(write: Any, rater: Rater, answer: GivenAnswer, now: str, came: str) -> bool:
    """Append an answer within a transaction; whether it is new."""
    known = write(
        "SELECT question, choice FROM answers WHERE rater = ? AND nonce = ?", (rater.number, answer.nonce)
    ).fetchone()
    if known not in (None, (answer.question, answer.choice)):
        text = "two different answers have the same nonce"
        raise BadAnswer(text if came == SERVER else f"{came}: {text}")
    if known is None:
        write(
            "INSERT INTO answers (rater, nonce, question, choice, milliseconds, at, came) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (rater.number, *answer, now, came),
        )
    return known is None


def check_answer(study: HumanStudy, plan: RaterPlan, answer: GivenAnswer) -> None:
    """Raise `BadAnswer` for an answer that a rater with this plan cannot give."""
    if not isinstance(answer.nonce, str) or not NONCE.fullmatch(answer.nonce):
        raise BadAnswer("its nonce is not 32 hexadecimal digits")
    task, ask = study.ask.get(answer.question) or (None, None) if isinstance(answer.question, str) else (None, None)
    if task is None or ask is None or task.id not in plan.tasks:
        raise BadAnswer("this rater is not asked that question")
    if answer.choice not in [value for value, _ in QUESTIONS[ask.kind].choices]:
        raise BadAnswer("the question has no such answer")
    if type(answer.milliseconds) is not int or not 0 <= answer.milliseconds <= LONGEST:
        raise BadAnswer("its time is none")


def _rater(row: tuple[Any, ...]) -> Rater:
    number, token, code, plan = row
    return Rater(number, token, code, RaterPlan.from_json(json.loads(plan)))

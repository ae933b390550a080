"""The server of a study: one page, its images, its answers. Raters are known by the token in their link."""

# Without annotations as strings: FastAPI could not look up what is named within a function.
from pathlib import Path
from typing import Annotated, Any

from diptych.evaluation.human.answer_store import AnswerStore, BadAnswer, GivenAnswer, Rater
from diptych.evaluation.human.rater_plans import shown_tasks
from diptych.evaluation.human.study_file import IMAGES
from diptych.serving.addresses import Address
from diptych.serving.guard import Guard
from diptych.serving.safe_files import content_type, page_files, read_inside
from diptych.serving.tokens import bearer

MOST_BYTES = 4096
"""Of a request: an answer has about two hundred."""


def study_application(store: AnswerStore, address: Address) -> Guard:
    """The application, with all checks around it.

    GET / and /pages/NAME are the page; anyone may read them. All else needs `Authorization: Bearer TOKEN`:
    GET /api/study has the rater's screens and answers, GET /api/images/ID an image, POST /api/answers takes an answer.
    """
    from fastapi import Depends, FastAPI, Header, HTTPException
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from pydantic import BaseModel, ConfigDict, Field

    class Posted(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        nonce: str = Field(max_length=32)
        question: str = Field(max_length=64)
        choice: str = Field(max_length=16)
        milliseconds: int

    pages = page_files("diptych.evaluation.human", "pages")
    known, folder = set(store.study.images), store.folder / IMAGES
    # No pages of FastAPI's own: they would load scripts from elsewhere.
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def rater_of(authorization: Annotated[str | None, Header()] = None) -> Rater:
        token = bearer(authorization)
        rater = None if token is None else store.by_token(token)
        if rater is None:
            raise HTTPException(401, "this link is not known", {"WWW-Authenticate": "Bearer"})
        return rater

    @application.exception_handler(BadAnswer)
    def refused(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @application.exception_handler(RequestValidationError)
    def no_answer(request: Any, error: Exception) -> JSONResponse:
        # FastAPI's own handler repeats what was sent, and fails where that is NaN or half a character.
        return JSONResponse({"detail": "this is no answer as the page sends it"}, 422)

    @application.get("/")
    def index() -> Response:
        return Response(pages["index.html"], media_type=content_type("index.html"))

    @application.get("/pages/{name}")
    def page(name: str) -> Response:
        if name not in pages:
            raise HTTPException(404, "no such page")
        return Response(pages[name], media_type=content_type(name))

    @application.get("/api/study")
    def study(rater: Annotated[Rater, Depends(rater_of)]) -> dict[str, Any]:
        return page_data(store, rater, answers=True)

    @application.get("/api/images/{name}")
    def image(name: str, rater: Annotated[Rater, Depends(rater_of)]) -> Response:
        data = read_inside(folder, f"{name}.png") if name in known else None
        if data is None:
            raise HTTPException(404, "no such image")
        return Response(data, media_type="image/png")

    @application.post("/api/answers")
    def answer(posted: Posted, rater: Annotated[Rater, Depends(rater_of)]) -> dict[str, Any]:
        given = GivenAnswer(posted.nonce, posted.question, posted.choice, posted.milliseconds)
        return {"saved": True, "new": bool(store.add(rater, [given]))}

    return Guard(application, address, most=MOST_BYTES)


def page_data(store: AnswerStore, rater: Rater, answers: bool) -> dict[str, Any]:
    """What the page gets for one rater. With `answers`, those given so far; an exported page has its own."""
    study = store.study
    return {
        "study": study.id,
        "protocol": study.protocol,
        "tasks": shown_tasks(study, rater.plan),
        "answers": store.answers_of(rater) if answers else {},
    }


def serve_study(folder: Path, host: str, port: int, public: str | None = None, raters: int | None = None) -> None:
    """Serve the study in a folder until interrupted, and print a link for each rater.

    raters: add raters until there are so many; none for those that there are, or one for each batch.
    """
    from diptych.core.terminal import print_err, print_out
    from diptych.serving.addresses import listen, read_address
    from diptych.serving.run_server import require_serve, run

    require_serve()
    store = AnswerStore(folder)
    try:
        known = store.raters()
        everyone = store.raters(raters or (0 if known else len(store.study.batches)))
        listening, address = listen(read_address(host, port, public))
        if not address.local:
            print_err(f"diptych: {address.host} can be reached from other machines: give each link to one rater only")
        for rater in everyone:
            part = store.study.batches[rater.plan.batch].part
            done, asked = len(store.answers_of(rater)), sum(len(store.study.task[t].asks) for t in rater.plan.tasks)
            print_out(f"{address.url}/#{rater.token}  rater {rater.number + 1}, {part}, {done} of {asked} answered")
        print_out(f"serving {folder} at {address.url}; Ctrl-C ends it, and the same command goes on")
        run(study_application(store, address), listening)
    finally:
        store.close()

"""The studio's FastAPI application: all routes, with the checks of every request around them."""

# Without annotations as strings: FastAPI could not look up what is named within a function.
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.models.provenance import Signer
from diptych.models.safety_check import SafetyCheck
from diptych.serving.addresses import Address
from diptych.serving.guard import READING, Guard
from diptych.serving.safe_files import content_type, page_files
from diptych.studio.api_errors import error_body, error_json, error_status
from diptych.studio.engine import Engine
from diptych.studio.json_body import plain
from diptych.studio.limits import FieldError, Limits, QueueFull, StorageError
from diptych.studio.public_text import without_paths

METHODS = (*READING, "POST", "PATCH", "DELETE")


def studio_application(engine: Engine, address: Address, token: str | None = None) -> Guard:
    """The application. With a token, every request for anything but the page itself must bring it."""
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    from diptych.studio import jobs_api
    from diptych.studio.a1111_api import add_a1111_routes
    from diptych.studio.access import Access
    from diptych.studio.openai_api import add_openai_routes
    from diptych.studio.prometheus import add_metrics_routes

    pages = page_files("diptych.studio", "pages")
    # No pages of FastAPI's own: they would load scripts from elsewhere.
    application = FastAPI(
        title="diptych", docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False
    )

    def failure(request: Request, status: int, message: str, field: str | None = None, headers: Any = None) -> Response:
        path, field = request.url.path, None if field is None else plain(field)
        status = error_status(path, status, field)
        return JSONResponse(error_body(path, status, plain(without_paths(message)), field), status, headers)

    @application.exception_handler(FieldError)
    def wrong_field(request: Request, error: FieldError) -> Response:
        return failure(request, 422, str(error), error.field)

    @application.exception_handler(QueueFull)
    def full(request: Request, error: QueueFull) -> Response:
        return failure(request, 429, str(error), None, {"retry-after": str(error.retry_after)})

    @application.exception_handler(StorageError)
    def storage(request: Request, error: StorageError) -> Response:
        return failure(request, 507, str(error))

    @application.exception_handler(Exception)
    def failed(request: Request, error: Exception) -> Response:
        return failure(request, 500, f"the server failed ({type(error).__name__})")

    @application.exception_handler(UserError)
    def refused(request: Request, error: UserError) -> Response:
        return failure(request, 400, str(error))

    @application.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        return failure(request, error.status_code, str(error.detail), None, error.headers)

    @application.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return failure(request, 422, str(first.get("msg", "not valid")), str(first.get("loc", ["?"])[-1]))

    @application.get("/", include_in_schema=False)
    def index() -> Response:
        return Response(pages["index.html"], media_type=content_type("index.html"))

    @application.get("/pages/{name}", include_in_schema=False)
    def page(name: str) -> Response:
        if name not in pages:
            raise HTTPException(404, "no such page")
        return Response(pages[name], media_type=content_type(name))

    jobs_api.add_routes(application, engine)
    add_openai_routes(application, engine)
    add_a1111_routes(application, engine)
    add_metrics_routes(application, engine)
    inner = Access(application, token, secure=address.url.startswith("https:"))
    return Guard(inner, address, most=engine.limits.upload_bytes, methods=METHODS, error=error_json)


def serve_studio(
    sources: Mapping[str, str],
    folder: Path,
    host: str,
    port: int,
    *,
    public: str | None = None,
    token: str | None = None,
    device: str = "auto",
    batch: int = 8,
    memory: int | None = None,
    styles: Path | None = None,
    limits: Limits | None = None,
    opening: Mapping[str, Any] | None = None,
    safety: SafetyCheck | None = None,
    signer: Signer | None = None,
) -> None:
    """Serve models by name until interrupted. Every image passes `safety` and is signed by `signer`, if there are any.

    Raises a `UserError` where that cannot be, the default model included.
    """
    from diptych.core.terminal import print_err, print_out
    from diptych.serving.addresses import listen, read_address
    from diptych.serving.run_server import require_serve, run

    require_serve()
    stated = read_address(host, port, public)
    if token is None and (not stated.local or public):
        raise UserError(
            f"{host} can be reached from other machines: give a --token that clients must know, or --token new"
        )
    print_err(f"diptych: opening {next(iter(sources), 'a model')} ...")  # PyTorch and weights take their time
    import diptych
    from diptych.core.folder_lock import held
    from diptych.studio.history import history_of
    from diptych.studio.model_pool import ModelPool
    from diptych.studio.styles import read_styles

    def open_source(source: str) -> Any:
        return diptych.load(source, device, **(opening or {}))

    pool = ModelPool(sources, open_source, memory, {} if styles is None else read_styles(styles))
    with held(folder, "another `diptych serve`"), history_of(folder) as history:
        history.signer = signer
        listening, address = listen(stated)
        pool.open(pool.default)
        if lost := history.jobs("lost"):
            print_err(f"diptych: {len(lost)} requests were lost when the server ended: the page lists them")
        engine = Engine(pool, history, limits, batch, safety)
        engine.start()
        try:
            print_out(f"{address.url}/{f'#{token}' if token else ''}")
            print_err(f"diptych: serving {', '.join(sources)} from {folder}; Ctrl-C ends it")
            run(studio_application(engine, address, token), listening, engine.close)
        finally:
            engine.close()

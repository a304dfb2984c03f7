"""`gemb serve`: a model and indexes behind HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gemb.commands.options import GroupedCommand, ModelOptions, model_options
from gemb.commands.params import FileSize
from gemb.io.text import visible
from gemb.models.prompts import TASKS

if TYPE_CHECKING:
    from gemb.serving.app import Service
    from gemb.serving.guard import Access

GROUPS = {
    "What is served": ("indexes", "name", "default_prompt"),
    "Where": ("host", "port", "uds"),
    "Who may ask": ("api_key_file", "insecure", "allow_host", "cors"),
    "How much": ("batch_tokens", "queue_tokens", "max_body", "max_inputs", "drain"),
    "Output": ("log_json", "quiet"),
    "Model": ("model", "backend", "device", "precision", "threads", "verbose"),
}


@click.command(cls=GroupedCommand, groups=GROUPS)
@click.option(
    "--index",
    "indexes",
    multiple=True,
    metavar="NAME=INDEX",
    help="Search an index at /v1/search, and on the page at /; repeatable.",
)
@click.option("--name", metavar="NAME", help="Name of the model; by default as -m says.")
@click.option(
    "--default-prompt",
    type=click.Choice(list(TASKS)),
    default="document",
    show_default=True,
    help="Prompt of requests that name none: neither NAME:query nor a field.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option("--uds", type=click.Path(), metavar="PATH", help="A Unix socket instead of a port.")
@click.option(
    "--api-key-file",
    type=click.Path(),
    metavar="FILE",
    help="Keys, one a line: a request needs one. Another address than loopback needs this.",
)
@click.option("--insecure", is_flag=True, help="Listen on another address without keys.")
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name by which clients call this server; repeatable.",
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Pages of https://HOST may ask; repeatable."
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="Tokens that are computed together.",
)
@click.option(
    "--queue-tokens",
    type=click.IntRange(min=1),
    default=65536,
    show_default=True,
    help="Tokens that may wait; beyond it the answer is 429.",
)
@click.option(
    "--max-body",
    type=FileSize(),
    default="16M",
    show_default=True,
    metavar="SIZE",
    help="Bytes of a request.",
)
@click.option(
    "--max-inputs",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Texts of a request.",
)
@click.option(
    "--drain",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="After SIGTERM, for requests that have begun.",
)
@click.option("--log-json", is_flag=True, help="JSON on stderr: a line for each request or note.")
@model_options
def serve(
    options: ModelOptions,
    indexes: tuple[str, ...],
    name: str | None,
    default_prompt: str,
    host: str,
    port: int,
    uds: str | None,
    api_key_file: str | None,
    insecure: bool,
    allow_host: tuple[str, ...],
    cors: tuple[str, ...],
    batch_tokens: int,
    queue_tokens: int,
    max_body: int,
    max_inputs: int,
    drain: int,
    log_json: bool,
) -> None:
    """Serve a model and indexes over HTTP.

    It speaks OpenAI's /v1/embeddings, /embed and /rerank of text-embeddings-inference, Ollama's
    /api/embed, and /v1/search. gemb help serve shows clients, and what is protected.

    \b
    gemb serve
    gemb serve --index docs=docs.gemb --port 9000
    gemb serve --host 0.0.0.0 --api-key-file keys.txt
    curl -s localhost:8080/v1/embeddings -H 'content-type: application/json' \\
      -d '{"model":"mini:query","input":"which planet is red?"}'

    \b
    Exit codes: 0 stopped by SIGTERM or Ctrl-C, 2 wrong usage or the port is in use,
    4 something is absent, 5 the run failed.
    """
    _import_libraries()
    from gemb.embedding.model import Model
    from gemb.errors import UsageError
    from gemb.io.notes import is_quiet, note, speak
    from gemb.search.interface import Index
    from gemb.serving import server
    from gemb.serving.app import Service
    from gemb.serving.limits import Limits
    from gemb.serving.prompts import ServedPrompts

    if log_json:
        speak(quiet=is_quiet(), as_json=True)
    folders = _folders(indexes)
    access = _access(
        host, uds=uds, key_file=api_key_file, insecure=insecure, hosts=allow_host, origins=cors
    )
    limits = Limits(
        batch_tokens=batch_tokens,
        queued_tokens=queue_tokens,
        body_bytes=max_body,
        inputs=max_inputs,
        drain_s=drain,
    )
    shown = name or _name_of(options.model)
    if ":" in shown:
        raise UsageError(f"--name {visible(shown)}: a colon parts the model from the prompt")
    binding = server.unix_socket(Path(uds)) if uds else server.listening_socket(host, port)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(binding)

        def new_service() -> Service:
            model = stack.enter_context(
                Model(
                    options.model,
                    backend=options.backend,
                    device=options.device,
                    precision=options.precision,
                    threads=options.threads,
                )
            )
            prompts = ServedPrompts(shown, default_prompt, model.profile.prompts)
            opened = {key: Index.suiting(path, model) for key, path in folders.items()}
            return Service(model, prompts, opened, access=access, limits=limits, log_json=log_json)

        def on_ready() -> None:
            address = visible(uds) if uds else _address(host, sock.getsockname()[1])
            searched = f", searches {', '.join(folders)}" if folders else ""
            note(
                f"serving {shown} at {address}{searched}; requests that name no prompt get "
                f"that of {default_prompt}; Ctrl-C ends"
            )

        server.serve(new_service, sock, limits, on_ready)


def _import_libraries() -> None:
    """Refuse to start without the extra.

    Raises:
        Missing: a library is not installed.
    """
    from importlib.util import find_spec

    from gemb.errors import Missing

    for module in ("starlette", "uvicorn", "prometheus_client"):
        if find_spec(module) is None:
            raise Missing(f"gemb serve needs the module '{module}': pip install 'gemb[serve]'")


def _folders(indexes: tuple[str, ...]) -> dict[str, Path]:
    """Return the folder of each index by its name.

    Raises:
        click.UsageError: the form is another, or a name is given twice.
    """
    folders: dict[str, Path] = {}
    for index in indexes:
        name, equals, folder = index.partition("=")
        if not equals or not name or not folder:
            raise click.UsageError(f"--index {visible(index)}: write NAME=INDEX: docs=docs.gemb")
        if name in folders:
            raise click.UsageError(f"--index {visible(name)} is given twice")
        folders[name] = Path(folder)
    return folders


def _access(
    host: str,
    *,
    uds: str | None,
    key_file: str | None,
    insecure: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
) -> Access:
    """Return who may ask.

    Raises:
        click.UsageError: others could reach it without a key, or an origin is none.
        UsageError: the file of keys is wrong.
    """
    from urllib.parse import urlsplit

    from gemb.serving.guard import LOOPBACK, Access, read_keys

    for origin in origins:
        try:
            parts = urlsplit(origin)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path:
            raise click.UsageError(f"--cors {visible(origin)}: an origin is https://HOST[:PORT]")
    keys = read_keys(Path(key_file)) if key_file else ()
    is_local = uds is not None or _is_loopback(host)
    if not is_local and not keys and not insecure:
        raise click.UsageError(
            f"--host {visible(host)} can be reached from other machines: give --api-key-file FILE, "
            "or --insecure if a proxy keeps strangers out"
        )
    if uds is not None or (keys and not hosts):
        allowed: tuple[str, ...] | None = (
            None  # a foreign page reaches no Unix socket, and has no key
        )
    else:
        allowed = (*LOOPBACK, *(name.lower() for name in (host, *hosts)))
    return Access(key_digests=keys, hosts=allowed, any_address=not is_local, origins=origins)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_of(reference: str) -> str:
    """Return the name of a model: of a path its last part, without .gguf."""
    path = Path(reference)
    name = path.name.removesuffix(".gguf") if path.exists() else reference
    return name.replace(":", "-") or "model"


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

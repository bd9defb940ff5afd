"""``flextensor serve``: this machine's devices for tuners on others."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    host: Annotated[str, typer.Option(help="the address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="the port to listen at")] = 9190,
) -> None:
    """Run kernels for tuners on other machines, which say --measure remote:HOST:PORT."""
    from flextensor.lean import import_tvm

    import_tvm()
    from flextensor.targets import rpc_server

    rpc_server.serve(host, port)

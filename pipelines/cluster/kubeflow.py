"""The Kubeflow server, by kfp's own client, with errors that a person can act on.

Tokens and cookies come from the environment, and are never printed.
"""

import json
import os
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

from pipelines.cluster import connection

TOKEN, COOKIES = "RAFT_KFP_TOKEN", "RAFT_KFP_COOKIES"
"""Environment variables with a bearer token, or the cookies of a session, for the server."""

HINT = (
    "raft needs a server of Kubeflow Pipelines 2: kubectl -n kubeflow port-forward "
    "svc/ml-pipeline-ui 8080:80 makes it --host http://localhost:8080. For a server behind a "
    f"login, put a bearer token in {TOKEN}, or the session's cookies in {COOKIES}."
)


def connect(host: str, ca_certificate: str = "") -> Any:
    """A kfp client whose server is known to answer; its calls raise a `ClusterError`."""
    import kfp
    from kfp_server_api import ApiException

    class Client(kfp.Client):
        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            # kfp's own tries five times, and takes the page of a login form for an empty answer.
            answer = self._healthz_api.healthz_service_get_healthz(
                _request_timeout=10, _preload_content=False
            )
            return SimpleNamespace(multi_user=json.loads(answer.data).get("multi_user"))

    with explained(host):
        client = Client(
            host=host,
            existing_token=os.environ.get(TOKEN) or None,
            cookies=os.environ.get(COOKIES) or None,
            ssl_ca_cert=ca_certificate or None,
        )
        client.get_kfp_healthz()
    api = client._run_api.api_client
    connection.explain_answers(api, host, ApiException, HINT)
    connection.outlast_restarts(api)
    return client


def explained(host: str) -> AbstractContextManager[None]:
    """Turn what kfp's client raises into a `ClusterError`, and keep its prints off the terminal."""
    from kfp_server_api import ApiException

    return connection.explained(host, ApiException, HINT)

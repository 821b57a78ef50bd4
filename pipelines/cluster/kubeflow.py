"""The Kubeflow server, by kfp's own client, with errors that a person can act on.

Tokens and cookies come from the environment or from kfp's configuration, and are never printed.
"""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from components.core.errors import ClusterError, NotPermitted
from pipelines.cluster.connection import NotThere, cause_of, guard, message_of

TOKEN, COOKIES = "RAFT_KFP_TOKEN", "RAFT_KFP_COOKIES"
"""Environment variables with a bearer token, or the cookies of a session, for the server."""

SERVER = (
    "raft needs a server of Kubeflow Pipelines 2: kubectl -n kubeflow port-forward "
    "svc/ml-pipeline-ui 8080:80 makes it --host http://localhost:8080."
)
LOG_IN = f"Put a bearer token in {TOKEN}, or the session's cookies in {COOKIES}."


def connect(host: str = "", ca_certificate: str = "", context: str = "") -> Any:
    """A kfp client whose server is known to answer at its `address`.

    Without a host, kfp looks for one: KF_PIPELINES_ENDPOINT, the service inside a cluster, or the
    cluster of the kubeconfig.
    """
    import kfp

    class Client(kfp.Client):
        def _load_config(self, *arguments: Any) -> Any:
            config = super()._load_config(*arguments)
            self.address = config.host
            if refresh := config.refresh_api_key_hook:
                # Before each request it also puts back the kubeconfig's host and the hook, without
                # the path to Kubeflow's service that kfp has added.
                def refresh_token(config: Any) -> None:
                    refresh(config)
                    config.host, config.refresh_api_key_hook = self.address, refresh_token

                config.refresh_api_key_hook = refresh_token
            guard(*config.api_key.values())
            return config

        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            # kfp's own tries five times, and takes the page of a login form for an empty answer.
            answer = self._healthz_api.healthz_service_get_healthz(
                _request_timeout=10, _preload_content=False
            )
            return SimpleNamespace(multi_user=json.loads(answer.data).get("multi_user"))

    with explained(host or "the Kubeflow server of KF_PIPELINES_ENDPOINT or of the kubeconfig"):
        client = Client(
            host=host or None,
            existing_token=os.environ.get(TOKEN) or None,
            cookies=os.environ.get(COOKIES) or None,
            ssl_ca_cert=ca_certificate or None,
            kube_context=context or None,
        )
        client.get_kfp_healthz()
    return client


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what kfp's client raises into `ClusterError`, and keep its prints off the terminal."""
    from google.auth.exceptions import GoogleAuthError
    from kfp_server_api.exceptions import ApiException, OpenApiException
    from urllib3.exceptions import HTTPError

    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    except HTTPError as error:
        raise ClusterError(f"{address} does not answer ({cause_of(error)})", hint=SERVER) from error
    except ApiException as error:
        kind = {401: NotPermitted, 403: NotPermitted, 404: NotThere}.get(error.status, ClusterError)
        # The error's own text has the response's headers, and with them cookies.
        problem = f"{address} refuses ({error.status}): {message_of(error)}"
        raise kind(problem, hint=LOG_IN if kind is NotPermitted else SERVER) from None
    except (OpenApiException, GoogleAuthError, ValueError, TypeError, AttributeError) as error:
        problem = f"{address} answers, but not as Kubeflow Pipelines 2 does ({cause_of(error)})"
        raise ClusterError(problem, hint=f"{SERVER} For a login page: {LOG_IN}") from error

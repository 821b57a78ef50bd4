"""The Kubeflow server, by kfp's own client, with errors that a person can act on.

Tokens and cookies come from the environment or from kfp's configuration, and are never printed.
"""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

from components.core.errors import ClusterError, NotPermitted
from pipelines.cluster.connection import NotThere, cause_of, guard, message_of

TOKEN, COOKIES = "RAFT_KFP_TOKEN", "RAFT_KFP_COOKIES"
"""Environment variables with a bearer token, or the cookies of a session, for the server."""

WHERE = (
    "Run `kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80` and give "
    "--host http://localhost:8080."
)
LOG_IN = f"Put a bearer token in {TOKEN}, or the session's cookies in {COOKIES}."

SERVER = "Check --host: raft needs a server of Kubeflow Pipelines 2."


def connect(host: str = "", ca_certificate: str = "", context: str = "") -> Any:
    """A kfp client whose server is known to answer.

    Without a host, kfp looks for one: KF_PIPELINES_ENDPOINT, the service inside a cluster, or the
    cluster of the kubeconfig.

    Raises:
        ClusterError: there is no server, or not one of Kubeflow Pipelines 2.
        NotPermitted: the server wants another account.
    """
    import kfp

    class Client(kfp.Client):
        """kfp's client; its own health check tries five times, with a traceback each."""

        def _load_config(self, *arguments: Any) -> Any:
            config = super()._load_config(*arguments)
            host, refresh = config.host, config.refresh_api_key_hook
            if refresh is not None:
                # Refreshing a kubeconfig's token, before each request, also puts back its host and
                # its hook, and so takes away the path to Kubeflow's service that kfp has added.
                def refresh_token(config: Any) -> None:
                    refresh(config)
                    config.host, config.refresh_api_key_hook = host, refresh_token

                config.refresh_api_key_hook = refresh_token
            guard(*config.api_key.values())
            return config

        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            if not named and self.address == "http://localhost":  # kfp found none, and guesses
                raise ClusterError("no Kubeflow server named, and no kubeconfig found", hint=WHERE)
            # Parsed by kfp, the page of a login form would look like an empty answer.
            answer = self._healthz_api.healthz_service_get_healthz(
                _request_timeout=10, _preload_content=False
            )
            return SimpleNamespace(multi_user=json.loads(answer.data).get("multi_user"))

        def get_run(self, run_id: str) -> Any:
            return self._run_api.run_service_get_run(run_id=run_id, _request_timeout=30)

        @property
        def address(self) -> str:
            return str(self._existing_config.host)

    named = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    with explained(named or "Kubeflow in the cluster of the kubeconfig"):
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
    """Turn what kfp's client raises into our errors, and keep its prints off the terminal."""
    from google.auth.exceptions import GoogleAuthError
    from kfp_server_api.exceptions import ApiException, OpenApiException
    from urllib3.exceptions import HTTPError

    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            yield
    except HTTPError as error:
        raise ClusterError(f"{address} does not answer ({cause_of(error)})", hint=WHERE) from error
    except ApiException as error:
        # Its own text has the response's headers, and with them cookies.
        message = message_of(error)
        if error.status in (401, 403):
            problem = f"{address} refuses this account ({error.status}: {message})"
            raise NotPermitted(problem, hint=LOG_IN) from None
        if error.status == 404:
            raise NotThere(f"{address}: {message}", hint=SERVER) from None
        hint = f"The pipeline is compiled by kfp {version('kfp')}; an older server may refuse it."
        raise ClusterError(f"{address} refuses: {message}", hint=hint) from None
    except (OpenApiException, GoogleAuthError, ValueError, TypeError, AttributeError) as error:
        problem = f"{address} does not answer as Kubeflow Pipelines 2 does ({cause_of(error)})"
        raise ClusterError(problem, hint=f"{SERVER} For a login page: {LOG_IN}") from error

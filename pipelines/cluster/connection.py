"""The Kubernetes cluster that kubectl would talk to, and its errors in words.

Knows nothing of RAFT. Credentials stay in the kubeconfig and in Kubernetes' own client.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import ClusterError, NotPermitted
from components.core.redaction import keep_secret

SECONDS_FOR_AN_ANSWER = 30


class NotThere(ClusterError):
    """The cluster has no such object."""


@dataclass(frozen=True)
class Cluster:
    """Clients of the APIs that we use."""

    address: str
    core: Any
    batch: Any
    version: Any

    def ask(self, method: Callable[..., Any], *arguments: object, **options: object) -> Any:
        """Call a method of one of the clients, with a time limit.

        Raises:
            NotPermitted: this account may not do that.
            NotThere: no such object.
            ClusterError: no answer, or another refusal.
        """
        options.setdefault("_request_timeout", SECONDS_FOR_AN_ANSWER)
        with self.explained():
            return method(*arguments, **options)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the client raises into our errors; see `ask`."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except HTTPError as error:
            cause = str(getattr(error, "reason", None) or error).rpartition(": ")[2]
            raise ClusterError(
                f"the cluster at {self.address} does not answer ({cause})",
                hint="kubectl cluster-info shows whether kubectl reaches it.",
            ) from None
        except ApiException as error:
            message = message_of(error.body, str(error.reason))
            if error.status in (401, 403):
                raise NotPermitted(
                    message, hint="kubectl auth whoami shows the account; ask for the permission."
                ) from None
            if error.status == 404:
                raise NotThere(message) from None
            raise ClusterError(f"the cluster refuses: {message}") from None


def message_of(body: object, otherwise: str) -> str:
    """What a Status object of the API says."""
    try:
        return str(json.loads(str(body))["message"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def connect(context: str = "") -> Cluster:
    """The cluster of the kubeconfig's context, or the one whose pod this is.

    Raises:
        ClusterError: there is no kubeconfig, or it is not usable.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # one message is enough
    settings = client.Configuration()
    path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not context and not Path(path).exists():
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(
                path, context=context or None, client_configuration=settings, persist_config=False
            )
    except (ConfigException, OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"no usable kubeconfig: {' '.join(str(error).split())}",
            hint="gcloud container clusters get-credentials CLUSTER --location LOCATION writes "
            f"one; looked for {path} (KUBECONFIG).",
        ) from None
    for value in (*settings.api_key.values(), settings.password):
        if value:
            keep_secret(str(value).removeprefix("Bearer "))
    settings.retries = 1
    api = client.ApiClient(settings)
    return Cluster(
        settings.host, client.CoreV1Api(api), client.BatchV1Api(api), client.VersionApi(api)
    )

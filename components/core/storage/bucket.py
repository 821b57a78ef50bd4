"""The client of Cloud Storage: retries, transfers side by side, and errors that say what to do."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, TypeVar

from components.core.config import SCHEME, check_location
from components.core.errors import AccessError, StorageError
from components.core.progress import task
from components.core.storage.artifacts import ManifestFile

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

TRANSFERS = 16  # files, or parts of large ones, under way at once
SECONDS_OF_RETRIES = 600.0
SECONDS_OF_SILENCE = 60.0  # of a connection, before its request is sent again
ATTEMPTS = 3  # at a copy that is whole, and at a set of files that fit together
GRANT = "Grant roles/storage.objectUser on the bucket to this account."
T = TypeVar("T")


def refuse_wrong(location: str) -> None:
    """Refuse what is no location, whoever names it: settings have been checked, but not a run's.

    Raises:
        StorageError: says what is wrong.
    """
    try:
        check_location(location)
    except ValueError as error:
        raise StorageError(
            f"{location}: {error}",
            hint="Write it so; a run of Kubeflow needs a pipeline root on gs://.",
        ) from None


def read_object(blob: "Blob") -> bytes:
    """All of a small object, of exactly the generation that was listed.

    Raises:
        StorageError: it keeps arriving damaged.
    """
    content: bytes = intact(
        blob,
        partial(blob.download_as_bytes, if_generation_match=blob.generation, retry=retry_policy()),
    )
    return content


def intact(blob: "Blob", copy: Callable[[], T]) -> T:
    """Copy, and once more when the copy is damaged."""
    from google.cloud.storage.exceptions import DataCorruption

    for _ in range(ATTEMPTS):
        with suppress(DataCorruption):
            return copy()
    raise StorageError(
        f"{uri_of(blob)}: arrived damaged {ATTEMPTS} times", hint="Run the same command again."
    )


def same_bytes(blob: "Blob", entry: ManifestFile) -> bool:
    return (blob.size, blob.crc32c) == (entry.size, entry.crc32c)


def generation_of(before: "Blob | None") -> int:
    """What a write replaces: a generation, or 0 for nothing."""
    return before.generation if before is not None else 0


def delete_object(blob: "Blob") -> None:
    from google.api_core.exceptions import NotFound

    with suppress(NotFound):
        blob.delete(retry=retry_policy())


def delete_exactly(blob: "Blob") -> None:
    """Delete the generation that is known, unless it is gone: a try whose answer was lost did it.

    Raises:
        StorageError: somebody else has replaced it.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        blob.delete(if_generation_match=blob.generation, retry=retry_policy())
    except (NotFound, PreconditionFailed):
        if find_object(blob.bucket, blob.name) is not None:
            raise somebody_else(blob) from None


def in_parallel(title: str, jobs: Sequence[tuple[int, Callable[[], None]]]) -> None:
    """Run transfers of so many bytes at once; the first error stops those not yet begun.

    Without a title no progress is shown.
    """
    if not jobs:
        return
    megabytes = sum(size for size, _ in jobs) / 1e6
    shown = task(f"{title} {megabytes:.1f} MB", len(jobs), "files") if title else nullcontext()
    pool = ThreadPoolExecutor(TRANSFERS)
    with shown as progress:
        # Large files first: one that starts last would be waited for alone.
        futures = [pool.submit(run) for _, run in sorted(jobs, key=lambda job: -job[0])]
        try:
            for future in as_completed(futures):
                future.result()
                if progress is not None:
                    progress.advance()
        except BaseException as error:
            # Who sends SIGTERM waits for seconds, and one transfer may take minutes.
            pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
    pool.shutdown()


def locate(uri: str) -> tuple["Bucket", str]:
    """The bucket of a URI, with a client, and the prefix without a slash at its end."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    refuse_wrong(uri)
    name, _, prefix = uri.removeprefix(SCHEME).partition("/")
    try:
        # Objects belong to no project, and the credentials of a person name none.
        client = storage.Client(project=None)
    except DefaultCredentialsError:
        raise AccessError(
            f"{uri}: no Google Cloud credentials found",
            hint="Run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a mounted key file.",
        ) from None
    except OSError as error:
        raise AccessError(
            f"{uri}: the Google Cloud credentials cannot be read ({error})",
            hint="Let this user read the file that GOOGLE_APPLICATION_CREDENTIALS names; in "
            'docker, pass --user "$(id -u):$(id -g)" for a mounted file of your own.',
        ) from None
    _widen(client)
    return client.bucket(name), prefix.strip("/")


def _widen(client: Any) -> None:
    """As many connections as transfers: the client keeps ten, and drops the others each time.

    None is silent for longer than `SECONDS_OF_SILENCE`.
    """
    from requests import PreparedRequest, Response
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, request: PreparedRequest, **options: Any) -> Response:
            options["timeout"] = min(options.get("timeout") or 60.0, SECONDS_OF_SILENCE)
            return super().send(request, **options)

    for scheme in ("https://", "http://"):
        client._http.mount(scheme, Adapter(pool_maxsize=TRANSFERS))


def retry_policy() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(SECONDS_OF_RETRIES)


def list_objects(bucket: "Bucket", prefix: str) -> list["Blob"]:
    return list(bucket.list_blobs(prefix=prefix, retry=retry_policy()))


def find_object(bucket: "Bucket", name: str) -> "Blob | None":
    return bucket.get_blob(name, retry=retry_policy())


def uri_of(blob: "Blob") -> str:
    return f"{SCHEME}{blob.bucket.name}/{blob.name}"


def join_names(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix else name


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from google.api_core.exceptions import (
        Forbidden,
        GoogleAPIError,
        NotFound,
        PreconditionFailed,
        Unauthorized,
    )
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NotFound as error:
        if "/o/" in str(error):
            raise StorageError(
                f"{uri}: an object vanished while it was used ({error.message})",
                hint="Does somebody else write or clean up there? Run the same command again.",
            ) from None
        raise StorageError(
            f"{uri}: no such bucket",
            hint="Check the name, or make it: gcloud storage buckets create",
        ) from None
    except (Forbidden, Unauthorized) as error:
        raise AccessError(f"{uri}: not allowed ({error.message})", hint=GRANT) from None
    except PreconditionFailed:
        raise StorageError(
            f"{uri}: somebody else is writing here",
            hint="Give every run an --output of its own.",
        ) from None
    except (
        GoogleAPIError,
        RequestException,
        TransportError,
        InvalidResponse,
        DataCorruption,
        HTTPError,
        HTTPException,
        ConnectionError,
    ) as error:
        raise StorageError(
            f"{uri}: Cloud Storage cannot be reached or keeps failing ({error})",
            hint="What was copied is kept; run the same command again.",
        ) from None
    except GoogleAuthError as error:
        raise AccessError(
            f"{uri}: the credentials have expired or are not accepted ({error})",
            hint="Run `gcloud auth application-default login` again, or mount a fresh key.",
        ) from None


def somebody_else(blob: "Blob") -> StorageError:
    return StorageError(
        f"{uri_of(blob)}: somebody else is writing here",
        hint="Give every run an --output of its own.",
    )

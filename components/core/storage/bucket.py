"""The client of Cloud Storage: retries, transfers in parallel, and errors that say what to do.

Transfers are the client library's transfer manager's, with threads: its processes pickle the
client. Two of its functions are not used. `upload_chunks_concurrently` takes no precondition and
begins again after an interruption, so large files are sent in parts of our own (publishing.py);
`download_chunks_concurrently` begins again, too (fetching.py).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.core.config import SCHEME, check_location
from components.core.errors import AccessError, StorageError
from components.core.progress import task

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

TRANSFERS = 16  # files, or parts of large ones, under way at once
SECONDS_OF_RETRIES = 600.0
SECONDS_OF_SILENCE = 60.0  # of a connection, before its request is sent again
ATTEMPTS = 3  # at a copy that is whole, and at a set of files that fit together
GRANT = "Grant roles/storage.objectUser on the bucket to this account."


class Piece(NamedTuple):
    """So many bytes of an object that are copied to or from a file."""

    blob: "Blob"
    path: Path
    start: int
    size: int


def refuse_wrong(location: str) -> None:
    """Refuse what is neither a local path nor a `gs://` URI; unlike settings, a run's are new here.

    Raises:
        StorageError: says what is wrong.
    """
    try:
        check_location(location)
    except ValueError as error:
        raise StorageError(
            f"{location}: {error}",
            hint="Write it so; a run of Kubeflow needs a pipeline root on gs://.",
        ) from error


def locate(uri: str) -> tuple["Bucket", str]:
    """The bucket of a URI, with a client, and the prefix without a slash at its end."""
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    refuse_wrong(uri)
    name, _, prefix = uri.removeprefix(SCHEME).partition("/")
    try:
        # Objects belong to no project, and the credentials of a person name none.
        client = storage.Client(project=None)
    except DefaultCredentialsError as error:
        raise AccessError(
            f"{uri}: no Google Cloud credentials found",
            hint="Run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a mounted key file.",
        ) from error
    except OSError as error:
        raise AccessError(
            f"{uri}: the Google Cloud credentials cannot be read ({error})",
            hint="Let this user read the file that GOOGLE_APPLICATION_CREDENTIALS names; in "
            'docker, pass --user "$(id -u):$(id -g)" for a mounted file of your own.',
        ) from error
    for scheme in ("https://", "http://"):  # the client keeps ten connections, and drops others
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=TRANSFERS))
    return client.bucket(name), prefix.strip("/")


def patiently() -> dict[str, Any]:
    """The arguments of every call: how long it is retried, and how long an answer may take."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"retry": DEFAULT_RETRY.with_timeout(SECONDS_OF_RETRIES), "timeout": SECONDS_OF_SILENCE}


def list_objects(bucket: "Bucket", prefix: str) -> dict[str, "Blob"]:
    """The objects under a prefix, by their names within it."""
    folder = f"{prefix}/".lstrip("/")
    blobs = bucket.list_blobs(prefix=folder, **patiently())
    return {blob.name.removeprefix(folder): blob for blob in blobs}


def find_object(bucket: "Bucket", name: str) -> "Blob | None":
    return bucket.get_blob(name, **patiently())


def read_object(blob: "Blob") -> bytes:
    """All of a small object, of exactly the generation that was listed.

    Raises:
        StorageError: it keeps arriving damaged.
    """
    from google.cloud.storage.exceptions import DataCorruption

    for _ in range(ATTEMPTS):
        with suppress(DataCorruption):
            content: bytes = blob.download_as_bytes(
                if_generation_match=blob.generation, **patiently()
            )
            return content
    raise arrived_damaged(blob)


def delete_objects(blobs: Iterable["Blob"]) -> None:
    """Delete exactly the generations that are known; those that are gone are fine.

    Raises:
        StorageError: somebody else has replaced one.
    """
    pool = ThreadPoolExecutor(TRANSFERS)
    deletions = [pool.submit(_delete, blob) for blob in blobs]
    pool.shutdown(wait=False)
    for deletion in deletions:
        deletion.result()


def _delete(blob: "Blob") -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        blob.delete(if_generation_match=blob.generation, **patiently())
    except (NotFound, PreconditionFailed) as error:  # or the answer to a first try was lost
        if find_object(blob.bucket, blob.name) is not None:
            raise somebody_else(uri_of(blob)) from error


def transfer(
    title: str,
    pieces: Iterable[Piece],
    opened: Callable[[Piece], AbstractContextManager[Any]],
    copy: Callable[..., None],
    arrived: Callable[[Piece], int] = lambda piece: 0,
) -> None:
    """Copy pieces with the transfer manager, which waits for all that it is given, errors or not.

    So it is given a few at a time, and the first error stops the rest; and it runs in a thread, so
    that SIGTERM, whose sender waits for seconds, does not wait for it. Without a title no progress
    is shown.

    Args:
        opened: the file of a piece, or its name, for the transfer manager.
        copy: takes pairs of a piece and its file, and the transfer manager's options for threads.
        arrived: bytes of a piece under way that are copied, where that is known.
    """
    pieces = sorted(pieces, key=lambda piece: -piece.size)  # one that starts last is waited for
    total, done = sum(piece.size for piece in pieces), 0
    with task(title, _megabytes(total), "MB") if title and pieces else nullcontext() as progress:

        def show(now: int) -> None:
            if progress is not None:
                progress.advance(max(0, _megabytes(now) - _megabytes(done)))

        for at in range(0, len(pieces), TRANSFERS):
            batch = pieces[at : at + TRANSFERS]
            with ExitStack() as held:
                pairs = [(piece, held.enter_context(opened(piece))) for piece in batch]
                thread = ThreadPoolExecutor(1)
                copying = thread.submit(copy, pairs, worker_type="thread", max_workers=TRANSFERS)
                thread.shutdown(wait=False)
                before = done
                while wait([copying], timeout=1).not_done:
                    show(now := before + sum(map(arrived, batch)))
                    done = now
                copying.result()
            show(now := before + sum(piece.size for piece in batch))
            done = now


def _megabytes(size: int) -> int:
    return -(-size // 10**6)


def uri_of(blob: "Blob") -> str:
    return f"{SCHEME}{blob.bucket.name}/{blob.name}"


def arrived_damaged(blob: "Blob") -> StorageError:
    return StorageError(
        f"{uri_of(blob)}: arrived damaged {ATTEMPTS} times", hint="Run the same command again."
    )


def somebody_else(uri: str) -> StorageError:
    return StorageError(
        f"{uri}: somebody else is writing here", hint="Give every run an --output of its own."
    )


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the client's errors into ours."""
    from google.api_core import exceptions as api
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except api.NotFound as error:
        if "/o/" in str(error):
            raise StorageError(
                f"{uri}: an object vanished while it was used ({error.message})",
                hint="Does somebody else write or clean up there? Run the same command again.",
            ) from error
        raise StorageError(
            f"{uri}: no such bucket",
            hint="Check the name, or make it: gcloud storage buckets create",
        ) from error
    except (api.Forbidden, api.Unauthorized) as error:
        raise AccessError(f"{uri}: not allowed ({error.message})", hint=GRANT) from error
    except api.PreconditionFailed as error:
        raise somebody_else(uri) from error
    except (
        api.GoogleAPIError, RequestException, TransportError, InvalidResponse, DataCorruption,
        HTTPError, HTTPException, ConnectionError,
    ) as error:  # fmt: skip
        raise StorageError(
            f"{uri}: Cloud Storage cannot be reached or keeps failing ({error})",
            hint="What was copied is kept; run the same command again.",
        ) from error
    except GoogleAuthError as error:
        raise AccessError(
            f"{uri}: the credentials have expired or are not accepted ({error})",
            hint="Run `gcloud auth application-default login` again, or mount a fresh key.",
        ) from error

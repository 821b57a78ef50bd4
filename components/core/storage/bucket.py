"""The client of Cloud Storage: retries, transfers in parallel, and errors that name what to do.

Transfers are not the client's transfer manager's, which takes one precondition for all files, and
waits for all of them even after an error or SIGTERM.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from components.core.errors import AccessError, StorageError
from components.core.locations import SCHEME, check_location
from components.core.progress import task

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Bucket

traffic = Counter[str]()
"""Under `fetched`, the bytes of files that this process has fetched, for the ledger."""

Job = tuple[int, Callable[[], object]]  # with its bytes, for the progress

TRANSFERS = 16  # files, or parts of large ones, under way at once
SECONDS_OF_RETRIES = 600.0
SECONDS_OF_SILENCE = 60.0  # of a connection, before its request is sent again
ATTEMPTS = 5  # at a copy that is whole, and at a set of files that fit together
GIVE = "Give every run an --output of its own."
CHECK = "Check the name, or make the bucket: gcloud storage buckets create"
REPEAT = "What was copied is kept; run the same command again."
LOG_IN = (
    "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a "
    "mounted key file."
)
PAYER = "GOOGLE_CLOUD_QUOTA_PROJECT"  # as Google's other clients call it
PAY = (
    f"Set {PAYER} to the ID of a project that pays; in a cluster, in the `env:` of the stage's "
    "Job manifest. The account needs serviceusage.services.use on it."
)
GRANT = "Grant roles/storage.objectUser on the bucket to this account."


def is_remote(location: str) -> bool:
    """Whether a location is a `gs://` URI rather than a local path.

    Raises:
        StorageError: it is neither; a run of Kubeflow may have another kind.
    """
    try:
        return check_location(location).startswith(SCHEME)
    except ValueError as error:
        raise StorageError(
            f"{location}: {error}",
            hint="Write it so; a run of Kubeflow needs a pipeline root on gs://.",
        ) from error


def locate(uri: str) -> tuple["Bucket", str]:
    """The bucket of a URI, with a client, and the prefix without a slash at its end."""
    from google.cloud import storage
    from requests.adapters import HTTPAdapter

    is_remote(uri)
    name, _, prefix = uri.removeprefix(SCHEME).partition("/")
    # Objects belong to no project, and the credentials of a person name none.
    client = storage.Client(project=None)
    for scheme in ("https://", "http://"):  # the client keeps ten connections, and drops others
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=TRANSFERS))
    return client.bucket(name, user_project=os.environ.get(PAYER) or None), prefix.strip("/")


@contextmanager
def opened(uri: str) -> Iterator[tuple["Bucket", str]]:
    """The bucket and the prefix of a URI, for a block in which errors are `explained`."""
    with explained(uri):
        yield locate(uri)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn the client's errors into ours.

    Raises:
        AccessError: no credentials, or not allowed.
        StorageError: no such bucket, no answer, or somebody else writes there.
    """
    try:
        yield
    except Exception as error:
        from google.api_core import exceptions as api
        from google.auth import exceptions as auth
        from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        denied, taken = (api.Forbidden, api.Unauthorized), api.PreconditionFailed
        transport = (
            api.GoogleAPIError, auth.TransportError, InvalidResponse, DataCorruption,
            RequestException, HTTPError, HTTPException, ConnectionError,
        )  # fmt: skip
        if isinstance(error, api.BadRequest) and "requester pays" in str(error):
            problem = "whoever reads this bucket pays for it (requester pays)"
            raise AccessError(f"{uri}: {problem} ({error})", hint=PAY) from error
        for kinds, ours, problem, hint in (
            (api.NotFound, StorageError, "no such bucket, or an object vanished", CHECK),
            (denied, AccessError, "not allowed", GRANT),
            (taken, StorageError, "somebody else is writing here", GIVE),
            (transport, StorageError, "Cloud Storage cannot be reached or keeps failing", REPEAT),
            (auth.GoogleAuthError, AccessError, "no Google Cloud credentials are accepted", LOG_IN),
        ):
            if isinstance(error, kinds):
                raise ours(f"{uri}: {problem} ({error})", hint=hint) from error
        raise


def patiently() -> dict[str, Any]:
    """The arguments of every call: how long it is retried, and how long an answer may take."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return {"retry": DEFAULT_RETRY.with_timeout(SECONDS_OF_RETRIES), "timeout": SECONDS_OF_SILENCE}


def list_objects(bucket: "Bucket", prefix: str) -> dict[str, "Blob"]:
    """The objects under a prefix, by their names within it."""
    folder = f"{prefix}/".lstrip("/")
    blobs = bucket.list_blobs(prefix=folder, **patiently())
    return {blob.name.removeprefix(folder): blob for blob in blobs}


def read_object(blob: "Blob") -> bytes:
    """All of a small object, of exactly the generation that was listed, if it was."""
    from google.cloud.storage.exceptions import DataCorruption

    for left in reversed(range(ATTEMPTS)):
        try:
            content: bytes = blob.download_as_bytes(
                if_generation_match=blob.generation, **patiently()
            )
            break
        except DataCorruption:
            if not left:
                raise
    return content


def write_object(
    blob: "Blob", replaced: "Blob | None", crc32c: str, write: Callable[..., None]
) -> "Blob":
    """Write an object that replaces exactly this one, or none.

    Args:
        crc32c: of what is written.
        write: a method of the blob that writes it.

    Raises:
        PreconditionFailed: somebody else wrote it.
    """
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        generation = replaced.generation if replaced is not None else 0
        write(if_generation_match=generation, **patiently())
    except (NotFound, PreconditionFailed) as error:
        written = blob.bucket.get_blob(blob.name, **patiently())
        if written is None or written.crc32c != crc32c:
            raise PreconditionFailed("replaced") from error
        return written  # by a first try, whose answer was lost
    return blob


def delete_objects(blobs: Iterable["Blob"]) -> None:
    """Delete exactly the generations that are known; those that are gone are fine.

    Raises:
        PreconditionFailed: somebody else has replaced one.
    """
    in_parallel([(0, partial(_delete, blob)) for blob in blobs])


def _delete(blob: "Blob") -> None:
    from google.api_core.exceptions import NotFound, PreconditionFailed

    try:
        blob.delete(if_generation_match=blob.generation, **patiently())
    except (NotFound, PreconditionFailed) as error:  # or the answer to a first try was lost
        if blob.bucket.get_blob(blob.name, **patiently()) is not None:
            raise PreconditionFailed("replaced") from error


def in_parallel(jobs: Sequence[Job], title: str = "") -> None:
    """Do several jobs at once, until one fails; with a title, show the progress in bytes.

    Jobs that run are waited for, so that no try begins before the last one has ended; but not at
    SIGTERM, whose sender waits for seconds only.
    """
    done, total = 0, sum(size for size, _ in jobs)
    pool = ThreadPoolExecutor(TRANSFERS)
    with task(title, _megabytes(total), "MB") if title and jobs else nullcontext() as progress:
        try:
            running = {pool.submit(work): size for size, work in jobs}
            for job in as_completed(running):
                job.result()
                before, done = done, done + running[job]
                if progress is not None:
                    progress.advance(_megabytes(done) - _megabytes(before))
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _megabytes(size: int) -> int:
    return -(-size // 10**6)

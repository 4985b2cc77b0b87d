"""Records of photographs with questions, read from a dataset repository of the hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.inputs.rows import BATCH_RECORDS, SourceRow, check_columns, first_line, seeded_order, source_row
from vlmeter.study.dataset_source import HubSource

#: Tries for one read from the hub. `datasets` makes 20, which lets a lost network pass for a slow one for ten
#: minutes.
HUB_READ_TRIES = 3


def hub_batches(source: HubSource, *, label: str) -> tuple[Iterator[list[SourceRow]], str]:
    """Find the repository and its split; the records themselves come when the batches are iterated over."""
    with _hub_errors(source, label):
        import datasets
        import huggingface_hub

        if huggingface_hub.constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
            raise UserError(
                f"{label}: must be read from the hub, but HF_HUB_OFFLINE is set; unset it, or set "
                "dataset.source to embedded or local"
            )
        # the commit pins every later request to one state of the repository
        commit = huggingface_hub.HfApi().dataset_info(source.name, revision=source.revision).sha
        splits = datasets.load_dataset(source.name, source.config, revision=commit, streaming=True)
    if source.split not in splits:
        raise UserError(f"{label}: has no split {source.split}; legal: {', '.join(map(str, splits))}")
    stream = splits[source.split]
    if stream.column_names is not None:
        check_columns(stream.column_names, label=label)
    return _hub_records(source, stream, label=label), str(commit)


def _hub_records(source: HubSource, stream: Any, *, label: str) -> Iterator[list[SourceRow]]:
    """Yield batches of records, row group by row group; nothing is requested beyond the last batch taken."""
    seed = source.seed
    for shard in seeded_order(stream.num_shards, seed=seed, salt="shard"):
        with _hub_errors(source, label):
            groups = stream.shard(num_shards=stream.num_shards, index=shard).reshard()
        for group in seeded_order(groups.num_shards, seed=seed, salt=f"shard {shard}, group"):
            with _hub_errors(source, label):
                # left encoded: a broken image that is not chosen must not end the stream
                rows = iter(groups.shard(num_shards=groups.num_shards, index=group).decode(False))
            while True:
                with _hub_errors(source, label):
                    batch = list(islice(rows, BATCH_RECORDS))
                if not batch:
                    break
                check_columns(batch[0], label=label)
                yield [source_row(row, label=label, holds_image=True) for row in batch]


_LEGAL_REPOSITORY = "legal: a repository of parquet files, such as lmms-lab/VQAv2"


@contextmanager
def _hub_errors(source: HubSource, label: str) -> Iterator[None]:
    """Turn what the hub's client libraries raise into one sentence, and keep their patience within reason.

    Only calls into those libraries belong inside: whatever goes wrong there - name resolution, HTTP, a
    repository in a form that cannot be read - concerns the user's choice of dataset or their network.
    """
    import datasets.config as config

    patience = {name: getattr(config, name) for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES")}
    try:
        for name in patience:
            setattr(config, name, HUB_READ_TRIES)
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{label}: {_hub_sentence(source, error)}") from error
    finally:
        for name, tries in patience.items():
            setattr(config, name, tries)


def _hub_sentence(source: HubSource, error: Exception) -> str:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    gated = f"is gated; ask for access at {hub}/datasets/{source.name} and log in with `hf auth login`"
    match error:
        case GatedRepoError():
            return gated
        case DatasetNotFoundError() if "gated" in str(error):  # as `datasets` puts it, with no cause
            return gated
        case RevisionNotFoundError():
            return f"has no revision {source.revision} on {hub}"
        case RepositoryNotFoundError():
            return f"does not exist on {hub}, or is private and needs `hf auth login`"
        case DataFilesNotFoundError() | EmptyDatasetError():
            return f"holds no data files; {_LEGAL_REPOSITORY}"
    if "scripts are no longer supported" in str(error):
        return f"is made by a script, which no longer runs; {_LEGAL_REPOSITORY}"
    return f"cannot be read from {hub}: {type(error).__name__}: {first_line(error)}"

"""From the options to examples: reads, splits, mixes, samples and tokenises the data they name.

Which samples are in which set depends on the data and on ``data_seed``, never on a trial.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from trainers.lora.data.bad_rows import BadRows
from trainers.lora.data.encoding import Encoder, Example
from trainers.lora.data.mixing import mix, repeated, sample_order
from trainers.lora.data.samples import Sample, read_samples
from trainers.lora.data.sources import ONLY_SET, Source, train_sources, validation_sources
from trainers.lora.options import LoraOptions


@dataclass(frozen=True)
class ExampleSets:
    """All examples, one by one.

    Attributes:
        train: To train on.
        validation: To validate on, by the set's name.
        notes: What was cut or left out, for the user.
        num_skipped_rows: Rows left out because they could not be used.
    """

    train: tuple[Example, ...]
    validation: Mapping[str, tuple[Example, ...]]
    notes: tuple[str, ...]
    num_skipped_rows: int


def make_example_sets(
    options: LoraOptions,
    encoder: Encoder,
    train: Sequence[Source],
    validation: Mapping[str, Sequence[Source]],
) -> ExampleSets:
    """Read and tokenise the sets.

    Raises:
        ValueError: A missing file, a bad row, or a set without anything to learn.
    """
    bad_rows = BadRows(options.on_bad_rows)
    pools = [_read(source, bad_rows) for source in train]
    if not any(pools):
        raise _all_bad("training", bad_rows)
    train_samples, held_out = _split(options, train, pools)
    samples = {ONLY_SET: held_out} if held_out else {}
    for name, sources in validation.items():
        pool = [
            sample
            for source in sources
            for sample in _limited(_read(source, bad_rows), _limit(source), options.data_seed)
        ]
        if not pool:
            raise _all_bad(_set_name(name), bad_rows)
        samples[name] = _limited(pool, options.eval_pool_size, options.data_seed)
    base = _common_folder([*train, *(one for sources in validation.values() for one in sources)])
    examples, notes = _encode("training", train_samples, encoder, options, bad_rows, base)
    sets = {}
    for name, chosen in samples.items():
        sets[name], more = _encode(_set_name(name), chosen, encoder, options, bad_rows, base)
        notes += more
    return ExampleSets(
        train=tuple(examples),
        validation={name: tuple(found) for name, found in sets.items()},
        notes=(*encoder.notes, *bad_rows.notes, *notes, *_overlap_notes(train, validation)),
        num_skipped_rows=bad_rows.num_skipped,
    )


def sources_of(options: LoraOptions) -> tuple[list[Source], dict[str, list[Source]]]:
    """Return where the training rows are, and those of each validation set."""
    return train_sources(options), validation_sources(options)


def _read(source: Source, bad_rows: BadRows) -> list[Sample]:
    return [
        sample
        for records in source.read(bad_rows)
        for sample in read_samples(records, source.layout, bad_rows)
    ]


def _limit(source: Source) -> int | None:
    limits = [n for n in (source.entry.num_samples, source.entry.max_samples) if n is not None]
    return min(limits, default=None)


def _limited(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Return a random sample in the order of the file."""
    return [samples[index] for index in sorted(sample_order(len(samples), seed)[:limit])]


def _split(
    options: LoraOptions, sources: Sequence[Source], pools: Sequence[Sequence[Sample]]
) -> tuple[list[Sample], list[Sample]]:
    """Return the samples to train and to validate on, after the limits.

    Validation samples are taken out before datasets are mixed, so that none is trained on however
    often mixing repeats its neighbours.
    """
    seed = options.data_seed
    limited = [
        _limited(pool, _limit(source), seed) for source, pool in zip(sources, pools, strict=True)
    ]
    samples = [sample for pool in limited for sample in pool]
    order = sample_order(len(samples), seed)
    num_eval = 0
    if options.val_size is not None:
        num_eval = _num_validation_samples(options.val_size, len(samples), sources)
    held_out = sorted(order[:num_eval][: options.eval_pool_size])
    rest = order[num_eval:]
    chosen = mix(_training_sets(sources, limited, set(rest), seed), options)
    if options.max_train_samples is not None:
        if sorted(chosen) == sorted(rest):  # taken in the split's own order
            chosen = sorted(rest[: options.max_train_samples])
        else:
            picked = sample_order(len(chosen), seed)[: options.max_train_samples]
            chosen = [chosen[index] for index in sorted(picked)]
    return [samples[number] for number in chosen], [samples[number] for number in held_out]


def _training_sets(
    sources: Sequence[Source], pools: Sequence[Sequence[Sample]], rest: set[int], seed: int
) -> list[list[int]]:
    """Return each dataset's numbers among all samples, without those held out."""
    sets = []
    first = 0
    for source, pool in zip(sources, pools, strict=True):
        own = [number for number in range(first, first + len(pool)) if number in rest]
        if source.entry.num_samples is not None and source.entry.max_samples is None:
            own = repeated(own, source.entry.num_samples - (len(pool) - len(own)), seed)
        sets.append(own)
        first += len(pool)
    return sets


def _num_validation_samples(val_size: float, num_samples: int, sources: Sequence[Source]) -> int:
    wanted = round(val_size * num_samples) if val_size < 1 else int(val_size)
    wanted = max(wanted, 1)
    if wanted >= num_samples:
        paths = ", ".join(source.entry.path for source in sources)
        raise ValueError(
            f"val_size: {val_size} takes {wanted} of the {num_samples} rows of {paths} and leaves "
            f"none to train on. Give a smaller val_size, or a validation_file."
        )
    return wanted


def _encode(
    name: str,
    samples: Sequence[Sample],
    encoder: Encoder,
    options: LoraOptions,
    bad_rows: BadRows,
    base: str,
) -> tuple[list[Example], list[str]]:
    """Tokenise one set; leave out what has nothing to learn, and say so."""
    known: dict[int, Example | None] = {}  # mixing repeats samples
    for sample in samples:
        if id(sample) not in known:
            try:
                example = encoder.encode(sample)
                known[id(sample)] = replace(example, where=example.where.removeprefix(base))
            except ValueError as error:
                bad_rows.refuse(error)
                known[id(sample)] = None
    found = (known[id(sample)] for sample in samples)
    examples = [example for example in found if example is not None]
    if not examples:
        raise _all_bad(name, bad_rows)
    max_length = options.max_length
    kept = [example for example in examples if example.num_targets > 0]
    if not kept:
        raise ValueError(
            f"none of the {len(examples)} {name} examples has a token of an answer within "
            f"max_length: {max_length}. Give a larger max_length."
        )
    num_truncated = sum(example.truncated for example in kept)
    num_skipped = sum(example.num_skipped_answers for example in kept)
    notes = []
    if num_truncated:
        notes.append(
            f"{num_truncated} of {len(examples)} {name} examples are cut to max_length {max_length}"
        )
    if len(kept) < len(examples):
        notes.append(
            f"{len(examples) - len(kept)} of {len(examples)} {name} examples are left out: no "
            f"token of their answer is within max_length {max_length}"
        )
    if num_skipped:
        notes.append(
            f"{num_skipped} earlier answers of {name} conversations are not learned: the chat "
            f"template rewrites them when the conversation goes on"
        )
    return kept, notes


def _set_name(name: str) -> str:
    return ONLY_SET if name == ONLY_SET else f"{ONLY_SET} ({name})"


def _all_bad(name: str, bad_rows: BadRows) -> ValueError:
    shown = "\n".join(bad_rows.messages)
    return ValueError(
        f"none of the {name} rows can be used ({bad_rows.num_skipped} bad rows). The first:\n{shown}"
    )


def _common_folder(sources: Sequence[Source]) -> str:
    """Return what all files' paths begin with, which says nothing about a row."""
    folders = {str(path.parent) for source in sources for path in source.files or ()}
    try:
        folder = os.path.commonpath(folders)
    except ValueError:  # none, or relative ones among absolute ones
        return ""
    return os.path.join(folder, "") if folder not in ("", ".") else ""


def _overlap_notes(
    train: Sequence[Source], validation: Mapping[str, Sequence[Source]]
) -> list[str]:
    trained = {path.resolve() for source in train for path in source.files or ()}
    shared = [
        str(path)
        for sources in validation.values()
        for source in sources
        for path in source.files or ()
        if path.resolve() in trained
    ]
    return [f"{path} is trained on and validated on" for path in dict.fromkeys(shared)]

"""The verb fit: n-gram models, word vectors and linear models, each with its report."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luban.fitting import report
from luban.fitting.config import FitConfig
from luban.fitting.sources import Sources
from luban.fitting.units import Stream, Units, write_stream
from luban.foundation.artifacts import Artifact, Input, Work, write_json
from luban.foundation.console import bytes_text, count_text, say, warn
from luban.foundation.errors import DataError
from luban.metrics.language import bits_per_byte, perplexity
from luban.metrics.score import Score, signature

VERSION = 1
SCRATCH = "scratch"  # what fitting needs on the way; gone when the artifact is whole


def run(config: FitConfig, work: Work) -> None:
    """Fit by the chosen method, score what was held out, and write results.json and report.md."""
    given = work.inputs["data"]
    inputs = given if isinstance(given, list) else [given]
    work.licence(*(name for item in inputs if isinstance(item, Artifact) for name in item.licences))
    shutil.rmtree(work.path / SCRATCH, ignore_errors=True)
    if config.method in ("linear", "majority", "dictionary"):
        results = _fit_examples(config, work, inputs)
    else:
        results = _fit_text(config, work, Sources(inputs, config.held_out))
    shutil.rmtree(work.path / SCRATCH, ignore_errors=True)
    results = {"method": config.method, **results}
    write_json(work.path / "results.json", results)
    report.write(work.path, results)
    work.metrics |= report.figures(results)


# ------------------------------------------------------------------------------------------------------- text


def _fit_text(config: FitConfig, work: Work, sources: Sources) -> dict[str, Any]:
    tokenizer = work.inputs.get("tokenizer")
    units = Units(config.chosen_unit, _tokenizer(tokenizer), config.chosen_lowercase, config.remove_stop_words, punctuation=config.method == "ngram")
    stream = write_stream(
        sources.training(),
        units,
        work.path / SCRATCH,
        minimum_count=config.chosen_minimum_count,
        vocabulary_size=config.vocabulary_size,
        memory=config.maximum_memory,
    )
    if not stream.units or not stream.names:
        raise DataError(
            "there is no text to fit", "{units} units were read, and none occurs {minimum} times", "give more text, or lower minimum_count",
            units=stream.units, minimum=config.chosen_minimum_count,
        )  # fmt: skip
    say(
        "  {units} units in {documents} documents ({size}), vocabulary {vocabulary}",
        units=count_text(stream.units),
        documents=len(stream.lengths),
        size=bytes_text(stream.bytes),
        vocabulary=len(stream.names),
    )
    if stream.forgotten:
        warn(
            "{count} rare words did not fit into maximum_memory while the text was read: they count as unknown where they stood before", count=stream.forgotten
        )
    fit = _fit_ngram if config.method == "ngram" else _fit_vectors
    return {"training": _training(stream, units), **fit(config, work, sources, units, stream)}


def _tokenizer(given: Input | list[Input] | None) -> Any:
    from luban.tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(_path(given)) if given is not None and not isinstance(given, list) else None


def _path(item: Input) -> Path:
    return item.path if isinstance(item, Artifact) else Path(item)


def _training(stream: Stream, units: Units) -> dict[str, Any]:
    known = int(stream.counts.sum())
    return {
        "unit": units.unit, "documents": len(stream.lengths), "units": stream.units, "bytes": stream.bytes, "vocabulary": len(stream.names),
        "unknown_units": stream.units - known, "forgotten_words": stream.forgotten,
    }  # fmt: skip


def _fit_ngram(config: FitConfig, work: Work, sources: Sources, units: Units, stream: Stream) -> dict[str, Any]:
    from luban.fitting.ngram import fit_ngram
    from luban.models.ngram_tables import write_arpa

    options = config.ngram
    model, orders = fit_ngram(stream, units, options.order, options.minimum_counts, work.path, work.path / SCRATCH, config.maximum_memory)
    results: dict[str, Any] = {"orders": orders, "runs": model.tables.facts["runs"], "bytes": sum(file.stat().st_size for file in work.path.glob("*.npy"))}
    scores, unknown = model.score(sources.held_out())
    if len(scores.nats):
        said = signature(
            bytes="utf8", model="kneser-ney-modified", order=options.order, unit=units.unit, spaces="unpaid" if units.unit == "word" else "paid", eot="yes"
        )
        found = {"bits_per_byte": bits_per_byte(scores, said, work.seed), "perplexity": perplexity(scores, said, work.seed)}
        results["held_out"] = {"documents": len(scores.nats), "unknown_units": unknown} | {name: score.to_json() for name, score in found.items()}
        for score in found.values():
            say("  held out: {score}", score=score)
    else:
        warn("nothing is held out, so nothing was scored: give the corpus a test split, or set held_out")
    results["samples"] = [model.sample(options.sample_units, seed=work.seed + number) for number in range(options.samples)]
    results["next"] = {prompt: model.next_words(prompt) for prompt in options.prompts}
    if options.arpa:
        write_arpa(model.tables, work.path / "model.arpa")
    return results


def _fit_vectors(config: FitConfig, work: Work, sources: Sources, units: Units, stream: Stream) -> dict[str, Any]:
    from luban.fitting.vectors import automatic_words, fit_vectors, read_pairs
    from luban.models.vector_files import write_word2vec
    from luban.models.vectors import WordVectors

    options = config.vectors
    matrix, facts = fit_vectors(config, stream, work.path / SCRATCH, work.seed)
    vectors = WordVectors(stream.names, matrix, {**units.save(work.path), "method": config.method, "counts_of_training": stream.units})
    vectors.save(work.path)
    write_word2vec(vectors, work.path / "vectors.txt")
    shown = automatic_words(stream.names) if options.show == "auto" else options.show
    if missing := [word for word in shown if word not in vectors]:
        warn("these words have no vector: {words}", words=", ".join(missing))
    results = facts | {"dimension": vectors.dimension, "nearest": {word: vectors.nearest(word, 8) for word in shown if word in vectors}}
    results["analogies"] = [
        {"of": triple, "answers": vectors.analogy(*triple) if all(word in vectors for word in triple) else []} for triple in options.analogies
    ]
    pairs = work.inputs.get("vectors.pairs")
    if pairs is not None and not isinstance(pairs, list):
        results["similarity"] = vectors.evaluate_pairs(read_pairs(_path(pairs), units.lowercase))
    report.show_nearest(results)
    return results


# --------------------------------------------------------------------------------------------------- examples


def _fit_examples(config: FitConfig, work: Work, inputs: list[Input]) -> dict[str, Any]:
    from luban.examples.reading import read_examples
    from luban.examples.splitting import hold_out

    task = "tagging" if config.method == "dictionary" else config.linear.task
    found = read_examples([str(_path(item)) for item in inputs], task, config.linear.mapping)
    training, held = hold_out(found.examples, config.held_out, seed=work.seed) if config.held_out else (found.examples, [])
    model = _fit_model(config, task, training)
    model.save(work.path)
    results: dict[str, Any] = {"task": task, "examples": len(training), "bad_lines": len(found.bad)}
    if hasattr(model, "weightiest"):
        results |= {"labels": model.labels, "features": len(model.vocabulary), "weightiest": model.weightiest()}
    else:
        results["entries"] = len(model.entries)
    if scored := [example for example in held if task == "tagging" or example.label not in (None, "")]:
        results["held_out"] = {"examples": len(scored), **_scores(model, task, scored, found.labels, work.seed)}
    else:
        warn("nothing is held out, so nothing was scored: give the corpus a test split, or set held_out")
    return results


def _fit_model(config: FitConfig, task: str, training: list[Any]) -> Any:
    from luban.fitting.dictionary import fit_dictionary
    from luban.fitting.linear import automatic_characters, fit_linear, fit_majority
    from luban.fitting.linear_model import Features

    if task == "tagging":
        return fit_dictionary(training)
    texts, labels = texts_of(training), [example.label for example in training]
    if config.method == "majority":
        return fit_majority(texts, labels, task=task)
    options = config.linear
    characters = automatic_characters(texts) if options.characters == "auto" else options.characters
    lowercase = True if config.lowercase == "auto" else config.lowercase
    features = Features(options.words, characters, lowercase, config.remove_stop_words)
    return fit_linear(
        texts, labels, task=task, model=options.model, features=features, maximum_features=options.maximum_features, regularisation=options.regularisation
    )


def texts_of(examples: Iterable[Any]) -> list[Any]:
    """What a linear model reads of labelled texts: pairs where any example has a second text."""
    examples = list(examples)
    paired = any(example.pair for example in examples)
    return [(example.text, example.pair) if paired else example.text for example in examples]


def _scores(model: Any, task: str, held: list[Any], labels: list[str], seed: int) -> dict[str, Any]:
    from luban.metrics.tasks import score_task

    texts = [example.text for example in held] if task == "tagging" else texts_of(held)
    found: dict[str, Score] = score_task(task, model.predict(texts), held, labels=labels, seed=seed)
    for name in list(found)[:4]:
        say("  held out: {name} {score}", name=name, score=found[name])
    return {name: score.to_json() for name, score in found.items()}

"""The demo: one new character, both shipped configs, one page."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ldm.data.characters import training_pictures
from ldm.data.images import list_pictures, open_picture
from ldm.evaluation.attributes import load_classifier
from ldm.evaluation.comparison import CharacterTest, Counts, Plan, compare, fresh_renders
from ldm.evaluation.models import chosen_device, default_names, open_run, sampling_of, subjects, words_of
from ldm.evaluation.prompts import read_prompts
from ldm.evaluation.report import ReportFiles, write_report
from ldm.evaluation.results_file import concept_name, named_character
from ldm.evaluation.tuning import CHARACTER_CONFIGS, tune

# the previews of the training command draw two pictures rows of their own; the page draws its own
WITHOUT_PREVIEWS = ("lightning.callbacks.image_logger.params.disabled=true",)


def demonstrate(
    name: str,
    *,
    out: Path,
    base: Path,
    classifiers: Path,
    prompts: Path,
    counts: Counts,
    seed: int,
    overrides: Sequence[str],
    say: Callable[[str], None],
    device: str | None,
    **sampling: Any,
) -> ReportFiles:
    """Teaches the character "SPLIT/NUMBER" to the base model twice, with one seed, and writes the page into `out`.

    sampling: what is given of steps, guidance_scale and batch_size (else None). say: takes a line for the person who waits.
    Raises ValueError or FileNotFoundError where something is missing or a run fails.
    """
    character = named_character(name)
    classifier = load_classifier(classifiers)
    pictures = out / "pictures"
    paths = training_pictures(character, pictures)
    say(f"1/3  {len(paths)} pictures of a new character ({concept_name(character)}) in {pictures}")
    runs = []
    for step, (role, config) in enumerate(CHARACTER_CONFIGS.items()):
        say(f"2/3  tuning on them, run {step + 1} of {len(CHARACTER_CONFIGS)}: {config}")
        runs.append(open_run(tune(config, base, pictures, logdir=out / "runs", name=role, seed=23 + seed, overrides=(*WITHOUT_PREVIEWS, *overrides))))
    say("3/3  sampling the frozen model and both runs from equal seeds")
    placeholder, class_word = words_of(runs[0].config)
    asked = read_prompts(prompts, placeholder=placeholder, class_word=class_word)
    plan = Plan(
        prompts=asked,
        class_prompts=[prompt.text for prompt in asked if prompt.kind == "class"],
        heldout_prompts=[prompt.text for prompt in asked if prompt.kind == "unlike"],
        sampling=sampling_of(runs[0].config, **sampling),
        counts=counts,
        first_seed=seed,
        placeholder=placeholder,
        test=CharacterTest(character, classifier),
        concept_pictures=fresh_renders(character),
        fresh_pictures=True,
    )
    results = compare(subjects(runs, base, names=default_names(runs), device=chosen_device(device)), plan)
    concept = [open_picture(path) for path in list_pictures(pictures)]
    return write_report(out, results, plan, concept=concept, settings={"Base checkpoint": str(base), "Runs": "; ".join(str(run.folder) for run in runs)})

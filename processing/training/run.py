"""Train JMCELN with the Trainer of transformers.

A run is described by a YAML file in `configs/`. Options override its fields:

    jmceln train configs/refcoco.yaml --image_folder coco/train2014 --learning_rate 1e-4
    torchrun --nproc_per_node 8 --no-python jmceln train configs/refcoco.yaml --output_dir runs/refcoco

If a run is interrupted, the same command resumes it from its newest checkpoint. SIGTERM makes it save a checkpoint
first. `docs/training.md` explains the settings, `docs/scaling.md` training on many GPUs and machines. TensorBoard
shows curves and predictions: `tensorboard --logdir runs`.
"""

import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import AutoTokenizer, EarlyStoppingCallback, set_seed

from modeling_jmceln import JMCELNModel

from .. import JMCELNProcessor
from ..data.leak_filter import held_out_by_all
from ..folder_lock import exclusive_folder
from ..names import nearest_name
from ..safe_files import naming_full_disk
from .arguments import DataArguments, ModelArguments, ReferringTrainingArguments, parse_arguments
from .augmentation import MaskingAugmentation
from .building import build_model, build_processor
from .checkpoints import check_resumable, newest_intact_checkpoint
from .collator import ReferringCollator
from .frozen_parts import batch_norm_layers, freeze
from .image_sampler import DrawnImages, EvaluatedImages, ImageSampler, count_expressions
from .lora import add_adapters, has_adapters, merge_adapters
from .prediction_pictures import PredictionPictures
from .referring_trainer import ReferringTrainer
from .run_settings import RESULTS_FILE, differing_settings, read_settings, write_settings
from .stop_signal import StopSignal
from .trainer_metrics import TrainerMetrics
from .training_data import EndlessSampler, GeneratedShapes, StreamedImages, join_rows, load_rows
from .unknown_words import find_unknown_words


logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the training that the arguments describe and returns the final scores."""
    arguments = sys.argv[1:] if arguments is None else arguments
    model_arguments, data_arguments, training_arguments = parse_arguments(arguments, description=__doc__)
    if not data_arguments.train_data:
        raise ValueError("There is no training data: pass a YAML file with `train_data`.")
    set_up_logging(training_arguments)
    # The other processes of a run on several GPUs are of the same run.
    is_main = training_arguments.process_index == 0
    folder = training_arguments.output_dir
    with naming_full_disk(folder), exclusive_folder(folder) if is_main else nullcontext():
        return run(model_arguments, data_arguments, training_arguments)


def run(
    model_arguments: ModelArguments, data_arguments: DataArguments, training_arguments: ReferringTrainingArguments
) -> dict[str, float]:
    """
    Train, or go on with a run that was killed, and return the scores of its end.

    Raises:
        SystemExit: If the run was told to stop by SIGTERM, after a checkpoint was saved.
    """
    settings = run_settings(model_arguments, data_arguments, training_arguments)
    checkpoint = find_checkpoint(training_arguments, settings)
    finished = read_results(training_arguments, settings)
    if finished is not None:
        logger.info("The run in %s is already finished", training_arguments.output_dir)
        return finished
    set_seed(training_arguments.seed)

    with training_arguments.main_process_first(desc="preparing datasets"):
        train_rows = load_training_rows(data_arguments)
        eval_rows = load_evaluation_rows(data_arguments)
    processor = build_processor(model_arguments, train_rows)
    if checkpoint is not None:
        refuse_other_words(processor, checkpoint)
    if training_arguments.should_log:
        warn_of_unknown_words(processor, train_rows)
    model = build_model(model_arguments, processor)
    freeze_parts(model, training_arguments)
    if training_arguments.lora_rank:
        add_adapters(model, training_arguments.lora_rank)
    trainer = build_trainer(model, processor, train_rows, eval_rows, data_arguments, training_arguments, settings)

    if trainer.is_world_process_zero():
        (Path(training_arguments.output_dir) / RESULTS_FILE).unlink(missing_ok=True)
        write_settings(settings, training_arguments.output_dir)
    scores = {}
    if checkpoint is not None and trainer.took_its_last_step(checkpoint):
        logger.info("All steps are done: finishing from %s", checkpoint)
        trainer.load_last_step(checkpoint)
    else:
        if checkpoint is not None:
            logger.info("Resuming from %s", checkpoint)
        stop_signal = StopSignal()
        trainer.add_callback(stop_signal)
        scores = trainer.train(resume_from_checkpoint=checkpoint).metrics
        if stop_signal.was_sent:
            logger.warning("Stopped by SIGTERM. To resume the run from here, start it again with the same command.")
            sys.exit(128 + signal.SIGTERM)
    scores = {**scores, **final_scores(trainer)}
    if has_adapters(model):
        merge_adapters(model)
    trainer.save_final_model()
    trainer.save_state()
    if training_arguments.push_to_hub:
        with trainer.averaged_weights():
            trainer.push_to_hub()
    trainer.save_metrics("all", scores, combined=False)
    return scores


def set_up_logging(arguments: ReferringTrainingArguments) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    if arguments.should_log:
        logger.setLevel(logging.INFO)
        transformers.utils.logging.set_verbosity_warning()
    else:
        datasets.disable_progress_bars()


def load_training_rows(arguments: DataArguments) -> Any:
    held_out = held_out_by_all(
        {"name_or_path" if key == "name" else key: value for key, value in specification.items()}
        for specification in arguments.held_out_data  # pyrefly: ignore[not-iterable] - a list once parsed
    )
    rows = join_rows(
        [
            load_rows(specification, image_folder=arguments.image_folder, exclude_image_ids=held_out)
            for specification in arguments.train_data  # pyrefly: ignore[not-iterable] - a list once parsed
        ]
    )
    if arguments.max_train_images is not None:
        rows = first_rows(rows, arguments.max_train_images)
    return rows


def load_evaluation_rows(arguments: DataArguments) -> dict[str, datasets.Dataset]:
    evaluated = {}
    for name, specification in arguments.eval_data.items():
        rows = load_rows(specification, image_folder=arguments.image_folder)
        if not isinstance(rows, datasets.Dataset):
            raise ValueError(f"The evaluation data {name!r} is endless: omit `streaming`, or give shapes a `size`.")
        if arguments.max_eval_images is not None:
            rows = first_rows(rows, arguments.max_eval_images)
        evaluated[name] = rows
    return evaluated


def first_rows(rows: Any, count: int) -> Any:
    if isinstance(rows, datasets.Dataset):
        return rows.select(range(min(count, len(rows))))
    raise ValueError("`max_train_images` and `max_eval_images` need datasets of known length: omit them for streams.")


def warn_of_unknown_words(processor: JMCELNProcessor, rows: Any) -> None:
    """Say which share of the words is unknown to the tokenizer; the words of a stream are not known beforehand."""
    if not isinstance(rows, datasets.Dataset):
        return
    unknown = find_unknown_words(
        processor.tokenizer, (text for row in rows.select_columns(["expressions"]) for text in row["expressions"])
    )
    if unknown.counts:
        logger.warning("%s. The model reads all of them as one and the same word.", unknown)


def freeze_parts(model: JMCELNModel, arguments: ReferringTrainingArguments) -> None:
    """Freezes the modules in the arguments and all parameters that the loss does not depend on."""
    for part in frozen_modules(model, arguments):
        freeze(part)
    unused = model.freeze_unused_parameters()
    if unused:
        logger.info("These parameters do not affect the loss and are frozen: %s", ", ".join(unused))


def frozen_modules(model: torch.nn.Module, arguments: ReferringTrainingArguments) -> list[torch.nn.Module]:
    """
    Returns the encoders and other modules that the arguments freeze.

    Raises:
        ValueError: If the model has no module with a name in `freeze_modules`.
    """
    encoders = {"backbone": arguments.freeze_vision, "text_model": arguments.freeze_text}
    chosen = [name for name, is_frozen in encoders.items() if is_frozen] + arguments.freeze_modules
    modules = dict(model.named_modules())
    for name in chosen:
        if name not in modules:
            raise ValueError(f"`freeze_modules`: the model has no module `{name}`{nearest_name(name, modules)}")
    return [modules[name] for name in chosen]


def modules_in_eval_mode(model: torch.nn.Module, arguments: ReferringTrainingArguments) -> list[torch.nn.Module]:
    """Returns the modules that stay in evaluation mode: frozen modules, and batch normalization if it is frozen."""
    layers = batch_norm_layers(model.get_submodule("backbone")) if arguments.freeze_batch_norm else []
    return [*frozen_modules(model, arguments), *layers]


def build_trainer(
    model: torch.nn.Module,
    processor: JMCELNProcessor,
    train_rows: Any,
    eval_rows: Mapping[str, datasets.Dataset],
    data: DataArguments,
    training: ReferringTrainingArguments,
    settings: Mapping[str, Any] | None = None,
) -> ReferringTrainer:
    seed = training.seed if training.data_seed is None else training.data_seed
    train_dataset, sampler = build_train_dataset(train_rows, data, training, seed)
    evaluated = {
        name: EvaluatedImages(
            rows,
            count_expressions(rows)[0],
            data.max_expressions_per_image_eval,
            multiple_of=training.eval_batch_size * training.world_size,
        )
        for name, rows in eval_rows.items()
    }
    augmentation = MaskingAugmentation(
        image_mask_ratio=data.image_mask_ratio,
        image_patch_size=data.image_patch_size,
        text_mask_ratio=data.text_mask_ratio,
        word_dropout=data.word_dropout,
        probability=data.masking_probability,
    )
    metrics = TrainerMetrics()
    trainer = ReferringTrainer(
        model=model,
        args=training,
        train_dataset=train_dataset,
        eval_dataset=evaluated or None,
        processing_class=processor,
        data_collator=ReferringCollator(processor),
        train_data_collator=ReferringCollator(
            processor,
            training=True,
            max_expressions_per_image=data.max_expressions_per_image,
            augmentation=augmentation,
            seed=seed,
        ),
        train_sampler=sampler,
        learning_rate_scales=training.learning_rate_scales,
        ema_decay=training.ema_decay,
        modules_in_eval_mode=modules_in_eval_mode(model, training),
        settings=settings,
        preprocess_logits_for_metrics=metrics.reduce_logits,
        compute_metrics=metrics,
    )
    if training.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(training.early_stopping_patience))
    if training.num_pictures > 0 and eval_rows:
        shown = next(iter(eval_rows.values()))
        pictures = [shown[index] for index in range(min(training.num_pictures, len(shown)))]
        trainer.add_callback(PredictionPictures(trainer, pictures, processor))
    return trainer


def build_train_dataset(
    rows: Any, data: DataArguments, training: ReferringTrainingArguments, seed: int
) -> tuple[Any, Any]:
    if isinstance(rows, datasets.IterableDataset):
        stream = StreamedImages(
            rows, seed=seed, process_index=training.process_index, num_processes=training.world_size
        )
        return stream, None
    if isinstance(rows, GeneratedShapes):
        return rows, EndlessSampler()
    expressions, referents = count_expressions(rows)
    sampler = ImageSampler(
        expressions,
        referents,
        max_expressions_per_image=data.max_expressions_per_image,
        epoch_unit=data.epoch_unit,
        seed=seed,
    )
    logger.info(
        "%d images, %d referents, %d expressions; an epoch has %d images with %.0f expressions",
        len(expressions),
        sum(referents),
        sum(expressions),
        len(sampler),
        sampler.expressions_per_epoch,
    )
    return DrawnImages(rows), sampler


def final_scores(trainer: ReferringTrainer) -> dict[str, float]:
    """Returns the scores of the saved model, from the last evaluation if that was of the same weights."""
    if trainer.eval_dataset is None:
        return {}
    scores = {}
    if not trainer.args.load_best_model_at_end:
        for entry in trainer.state.log_history:
            if entry["step"] == trainer.state.global_step:
                scores.update({name: value for name, value in entry.items() if name.startswith("eval_")})
    return scores or trainer.evaluate()


def find_checkpoint(arguments: ReferringTrainingArguments, settings: Mapping[str, Any]) -> str | None:
    """
    Returns the checkpoint to resume from, if any.

    Raises:
        ValueError: If the newest intact checkpoint in the output folder is from a run with other settings, or if the
            given checkpoint is damaged or does not exist.
    """
    wanted = arguments.resume_from_checkpoint
    if wanted in (None, "never"):
        return None
    if wanted != "auto":
        check_resumable(wanted)
        return wanted
    checkpoint = newest_intact_checkpoint(arguments.output_dir)
    if checkpoint is not None:
        refuse_other_settings(checkpoint, settings)
    return checkpoint


def read_results(arguments: ReferringTrainingArguments, settings: Mapping[str, Any]) -> dict[str, float] | None:
    """
    Returns the scores of this run if it is already finished and should not start from the beginning.

    Raises:
        ValueError: If the output folder contains a finished run with other settings.
    """
    path = Path(arguments.output_dir) / RESULTS_FILE
    if arguments.resume_from_checkpoint != "auto" or not path.is_file():
        return None
    refuse_other_settings(arguments.output_dir, settings)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        logger.warning("%s is damaged: the run is finished anew from its newest checkpoint", path)
        return None


def refuse_other_settings(folder: str, settings: Mapping[str, Any]) -> None:
    before = read_settings(folder)
    differences = [] if before is None else differing_settings(before, settings)
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ValueError(
            f"{folder} is from a run with other settings: {'; '.join(differences[:5])}{more}. Choose another"
            " `output_dir`, or use the same settings. `--resume_from_checkpoint never` starts from the beginning in"
            " this folder, and `--resume_from_checkpoint <checkpoint>` resumes from a checkpoint with the new"
            " settings."
        )


def refuse_other_words(processor: JMCELNProcessor, checkpoint: str) -> None:
    """
    Raises:
        ValueError: If the tokens of a checkpoint have other ids now, as with `tokenizer: words` on changed data.
    """
    if not (Path(checkpoint) / "tokenizer_config.json").is_file():
        return
    before, now = AutoTokenizer.from_pretrained(checkpoint).get_vocab(), processor.tokenizer.get_vocab()
    changed = sorted(token for token in before.keys() | now.keys() if before.get(token) != now.get(token))
    if changed:
        raise ValueError(
            f"The tokenizer of {checkpoint} has other ids for {len(changed)} tokens, such as {changed[:3]}, so its"
            " weights would read other words. If the training data have changed, name another `output_dir`."
        )


def run_settings(model: ModelArguments, data: DataArguments, training: ReferringTrainingArguments) -> dict[str, Any]:
    """Returns all settings of a run."""
    return {
        "model": vars(model),
        "data": vars(data),
        "training": {**training.to_sanitized_dict(), "num_processes": training.world_size},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }

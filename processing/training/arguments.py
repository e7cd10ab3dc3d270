"""
The settings of a training run, from YAML files and from the command line.

`TrainingArguments` needs `HfArgumentParser`. A few functions add what this parser lacks: files that extend each other,
and nested fields. OmegaConf would add a dependency with a second configuration language.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from modeling_jmceln import JMCELNConfig

from ..names import check_config_fields, nearest_name


def _parsed(value: Any) -> Any:
    """Parses a string from the command line as YAML, which includes JSON."""
    import yaml

    return yaml.safe_load(value) if isinstance(value, str) else value


@dataclass
class ModelArguments:
    """The model to train: a saved one, one built from two pretrained encoders, or one from scratch."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a saved JMCELN model to continue training from."}
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a pretrained vision model. Needs `text_model`, or a `text_config` in"
            " `model_config` for a text encoder from scratch."
        },
    )
    text_model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a pretrained text encoder and its tokenizer."}
    )
    model_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of JMCELNConfig. Without any of the three arguments above, they describe a model with"
            " random weights. On the command line, set single fields with `--model_config.num_stages 4`."
        },
    )
    new_parts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts of `model_name_or_path` to initialize with random weights, for example because"
            " `model_config` changes them: `--new_parts cascade --model_config.num_stages 4`."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a tokenizer, or `words` to build one from the words in the training data."
            " Defaults to the tokenizer of `model_name_or_path` or `text_model`."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of the model's input. Defaults to those of the processor."}
    )
    keep_aspect_ratio: bool | None = field(
        default=None, metadata={"help": "Scale and pad images instead of stretching them to `image_size`."}
    )
    max_words: int | None = field(
        default=None, metadata={"help": "Maximum tokens per expression; longer expressions are cut."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "`sdpa`, `eager` or another one."})
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run the code that is saved with `model_name_or_path`. JMCELN models do not need it, because their"
            " classes are installed."
        },
    )

    def __post_init__(self) -> None:
        self.model_config = dict(_parsed(self.model_config) or {})
        if self.text_model is not None and self.vision_model is None:
            raise ValueError("`text_model` is given without `vision_model`: give both.")
        if self.vision_model is not None and (self.text_model is None) == ("text_config" not in self.model_config):
            raise ValueError(
                "`vision_model` needs either a `text_model`, or a `text_config` in `model_config` for a text encoder"
                " from scratch."
            )
        if self.new_parts and self.model_name_or_path is None:
            raise ValueError("`new_parts` are parts of a saved model: give it as `model_name_or_path`.")
        describes_another = self.vision_model is not None or (self.model_config and not self.new_parts)
        if self.model_name_or_path is not None and describes_another:
            raise ValueError(
                "`model_name_or_path` is a complete model: omit `vision_model` and `text_model`, and omit"
                " `model_config` unless there are `new_parts`."
            )
        if self.model_name_or_path is None and self.vision_model is None and not self.model_config:
            raise ValueError(
                "There is no model. Give `model_name_or_path`, or `vision_model` and `text_model`, or `model_config`."
            )
        if self.model_name_or_path is None and self.text_model is None and self.tokenizer is None:
            raise ValueError("A model from scratch needs a `tokenizer`: a folder or Hub id, or `words`.")
        check_config_fields(self.model_config, JMCELNConfig(), "model_config")


@dataclass
class DataArguments:
    """The datasets to train and to evaluate on."""

    train_data: list | str | None = field(
        default=None,
        metadata={
            "help": "List of datasets. Each is a mapping with the arguments of `load_referring_dataset`, or of"
            " `shapes_dataset` with `name: shapes`."
        },
    )
    eval_data: dict | str | None = field(
        default=None,
        metadata={"help": "Datasets to evaluate on, by name, each in the format of `train_data`."},
    )
    held_out_data: list | str | None = field(
        default=None,
        metadata={
            "help": "Datasets whose validation and test images are removed from all training data. Each is a mapping"
            " with a `name` and the arguments of `held_out_image_ids`."
        },
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Folder of COCO images, for datasets that contain only the paths of images."}
    )
    max_expressions_per_image: int = field(
        default=8, metadata={"help": "Maximum expressions per image and step; they are sampled anew in each step."}
    )
    max_expressions_per_image_eval: int = field(
        default=16,
        metadata={"help": "Maximum expressions per image at a time in evaluation; all of them are evaluated."},
    )
    epoch_unit: str = field(
        default="referents",
        metadata={
            "help": "Length of an epoch: as many expressions as there are `referents` (the usual definition) or"
            " `sentences`; or `images` for one pass over the images.",
            "choices": ["referents", "sentences", "images"],
        },
    )
    max_train_images: int | None = field(default=None, metadata={"help": "Train only on this many images."})
    max_eval_images: int | None = field(default=None, metadata={"help": "Evaluate only on this many images."})
    image_mask_ratio: float = field(
        default=0.0, metadata={"help": "Share of the patches to blank in a masked image (MaskRIS: 0.75)."}
    )
    image_patch_size: int = field(default=32, metadata={"help": "Height and width of a masked patch in pixels."})
    text_mask_ratio: float = field(
        default=0.0, metadata={"help": "Share of the words to mask in expressions of a masked image (MaskRIS: 0.15)."}
    )
    word_dropout: float = field(
        default=0.0, metadata={"help": "Share of the words to drop from expressions of a masked image."}
    )
    masking_probability: float = field(
        default=0.5, metadata={"help": "Probability that an image and its expressions are masked."}
    )

    def __post_init__(self) -> None:
        self.train_data = list(_parsed(self.train_data) or [])
        self.eval_data = dict(_parsed(self.eval_data) or {})
        self.held_out_data = list(_parsed(self.held_out_data) or [])
        specifications = [*self.train_data, *self.eval_data.values(), *self.held_out_data]
        bad = [specification for specification in specifications if not isinstance(specification, Mapping)]
        if bad:
            raise ValueError(f"A dataset must be a mapping such as {{name: ..., split: train}}, got {bad[0]!r}.")


@dataclass
class ReferringTrainingArguments(TrainingArguments):
    """The arguments of the Trainer, with additional ones and other defaults."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be off: the collator needs columns that are not inputs of the model."}
    )
    batch_eval_metrics: bool = field(
        default=True, metadata={"help": "Must be on: scores are computed batch by batch, without keeping masks."}
    )
    report_to: str | None = field(
        default="tensorboard", metadata={"help": "Where to log: `tensorboard`, `none` or another integration."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    warmup_steps: float = field(
        default=0, metadata={"help": "Steps in which the learning rate rises from 0; below 1, a share of the run."}
    )
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "`auto` resumes from the newest intact checkpoint in `output_dir`, if there is one; `never` starts"
            " from the beginning; anything else is the path of a checkpoint."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "Whether DDP looks for unused parameters in each step. It is not needed: unused parameters of the"
            " encoders are found and frozen at the start."
        },
    )
    backbone_learning_rate_scale: float = field(
        default=1.0, metadata={"help": "Learning rate of the vision backbone, as a factor of `learning_rate`."}
    )
    text_learning_rate_scale: float = field(
        default=1.0, metadata={"help": "Learning rate of the text encoder, as a factor of `learning_rate`."}
    )
    freeze_vision: bool = field(
        default=False,
        metadata={"help": "Freeze the vision backbone: its weights and its batch normalization statistics."},
    )
    freeze_text: bool = field(default=False, metadata={"help": "Freeze the text encoder."})
    freeze_batch_norm: bool = field(
        default=False,
        metadata={
            "help": "Freeze the batch normalization statistics of the backbone, but not its weights. For batches that"
            " are too small to estimate the statistics."
        },
    )
    freeze_modules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "More modules to freeze, by their names in the model, for example `text_model.embeddings"
            " backbone.encoder.layer.0`."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, which is evaluated and, at the end, saved."},
    )
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of low-rank adapters (LoRA) that are trained instead of the matrices of the encoders and"
            " merged into them at the end; 0 for none. Needs `peft`."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations in a row without a better `metric_for_best_model`. Needs"
            " `load_best_model_at_end`."
        },
    )
    num_pictures: int = field(
        default=4, metadata={"help": "Number of images with predictions to log to TensorBoard at each evaluation."}
    )

    def __post_init__(self) -> None:
        # transformers 4 takes only whole steps here, and a share of the run in another argument.
        if getattr(self, "warmup_ratio", None) is not None:
            if 0 < self.warmup_steps < 1:
                self.warmup_steps, self.warmup_ratio = 0, self.warmup_steps
            elif self.warmup_steps == int(self.warmup_steps):
                self.warmup_steps = int(self.warmup_steps)
        super().__post_init__()
        # Without an accelerator, pinned memory has no use and causes a warning.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.remove_unused_columns or not self.batch_eval_metrics:
            raise ValueError("`remove_unused_columns` must be off and `batch_eval_metrics` on: omit both.")
        # Otherwise, each process would divide by its own number of expressions.
        if not self.average_tokens_across_devices:
            raise ValueError("`average_tokens_across_devices` must be on: the loss is averaged over all processes.")
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError("`early_stopping_patience` needs `load_best_model_at_end: true`.")
        if self.lora_rank and self.ema_decay is not None:
            raise ValueError("`lora_rank` and `ema_decay` cannot be used together: omit one of them.")

    @property
    def learning_rate_scales(self) -> dict[str, float]:
        """Factors of the learning rate other than 1, by the prefix of the parameter names."""
        scales = {"backbone.": self.backbone_learning_rate_scale, "text_model.": self.text_learning_rate_scale}
        return {prefix: scale for prefix, scale in scales.items() if scale != 1.0}


ARGUMENT_CLASSES = (ModelArguments, DataArguments, ReferringTrainingArguments)


# A link to configs/ in a clone of the repository, and a folder in the installed package.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def find_settings_file(name: str | Path) -> Path:
    """
    Returns the file `name`, or a configuration of the package: `refcoco.yaml` is found from any working directory.

    Raises:
        FileNotFoundError: If there is neither. The message suggests the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.name == str(name) and (CONFIGS / name).is_file():
        return CONFIGS / name
    names = [path.name for path in sorted(CONFIGS.glob("*.yaml"))]
    raise FileNotFoundError(
        f"There is no file {str(name)!r}{nearest_name(path.name, names)} The package contains {', '.join(names)}."
    )


def load_settings(path: str | Path) -> dict[str, Any]:
    """
    Reads the settings of a run from a YAML file and from the file in its key `extends`.

    Args:
        path (`str` or `Path`): A file, or the name of a configuration of the package, such as `refcoco.yaml`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not YAML, or does not contain a mapping.
    """
    import yaml

    path = find_settings_file(path)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must contain a mapping of settings, got a {type(settings).__name__}.")
    base = settings.pop("extends", None)
    return settings if base is None else merge_settings(load_settings(path.parent / base), settings)


def merge_settings(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with the values of `override`. Nested mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in override.items():
        is_nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge_settings(merged[key], value) if is_nested else value
    return merged


def parse_arguments(
    arguments: Sequence[str],
    description: str | None = None,
    argument_classes: Sequence[type] = ARGUMENT_CLASSES,
    prog: str = "jmceln train",
) -> tuple[Any, ...]:
    """
    Reads the settings of a run from YAML files, in order, and then from options.

    Args:
        arguments (`Sequence[str]`):
            Arguments of the command: any number of YAML files, then `--field value`. Dots select a field in a mapping
            or a list: `--model_config.num_stages 4`, `--train_data.0.split val`.
        description (`str`, *optional*):
            Text at the top of `--help`.
        argument_classes (`Sequence[type]`, *optional*):
            The dataclasses whose fields can be set. Defaults to those of the model, the data and the training.
        prog (`str`, *optional*, defaults to `"jmceln train"`):
            Name of the command in `--help`.

    Returns:
        One instance of each class.

    Raises:
        ValueError: If a setting is unknown (the message suggests the nearest name), or empty where it needs a value.
    """
    names = list(arguments)
    files = []
    while names and not names[0].startswith("-"):
        files.append(names.pop(0))
    settings: dict[str, Any] = {}
    for file in files:
        settings = merge_settings(settings, load_settings(file))
    if any(name.partition("=")[0] == "--model_name_or_path" for name in names):
        # A saved model on the command line replaces the model that the files describe. Fields for `new_parts` are
        # kept, since they apply to any saved model.
        described = ["vision_model", "text_model", "tokenizer"]
        if not settings.get("new_parts"):
            described.append("model_config")
        for part in described:
            settings.pop(part, None)
    options = _take_dotted_options(names, settings)
    parser = HfArgumentParser(
        argument_classes,
        prog=prog,
        allow_abbrev=False,
        usage="%(prog)s [FILE.yaml ...] [--field value ...]",
        description=description,
    )
    known = {field.name: field for argument_class in argument_classes for field in dataclasses.fields(argument_class)}
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"There is no setting `{name}`{nearest_name(name, known, '; `--help` lists all.')}")
        if value is None and known[name].default is not None and known[name].type in (bool, int, float, str):
            raise ValueError(f"The setting `{name}` is empty: give it a value, or leave it out.")
    parser.set_defaults(**settings)
    for option in parser.parse_known_args(options)[1]:
        if not option.startswith("--"):
            raise ValueError(f"`{option}` is neither an option nor its value; put files before all options.")
        name = option.partition("=")[0].removeprefix("--").replace("-", "_")
        raise ValueError(f"There is no option `{option}`{nearest_name(name, known, '; `--help` lists all.')}")
    return parser.parse_args_into_dataclasses(args=options, look_for_args_file=False)


def _take_dotted_options(options: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Writes options such as `--model_config.num_stages 4` into `settings`, and returns the other options."""
    others = []
    pending = list(options)
    while pending:
        option = pending.pop(0)
        name, equals, value = option.partition("=")
        if not name.startswith("--") or "." not in name:
            others.append(option)
            continue
        if not equals:
            if not pending:
                raise ValueError(f"`{option}` has no value: add one.")
            value = pending.pop(0)
        *path, last = name[2:].split(".")
        target: Any = settings
        for key in path:
            if isinstance(target, dict) and key.isdigit():
                raise ValueError(f"`{name}`: there is no list with a position {key} in the YAML files.")
            target = target[_position(key, target, name)] if isinstance(target, list) else target.setdefault(key, {})
        if isinstance(target, list):
            target[_position(last, target, name)] = _parsed(value)
        elif isinstance(target, dict):
            target[last] = _parsed(value)
        else:
            raise ValueError(f"`{name}`: {target!r} has no fields.")
    return others


def _position(key: str, target: list, name: str) -> int:
    if not key.isdigit() or int(key) >= len(target):
        raise ValueError(f"`{name}`: {key!r} is not a position in a list of {len(target)}.")
    return int(key)

"""
The settings of a training run, and how a YAML file and the command line give them.

`TrainingArguments` needs `HfArgumentParser`. What it lacks, files that extend each other and fields within fields, is
a few functions here; OmegaConf would be a dependency with a language and types of its own beside the parser.
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
    """What a string from the command line means in YAML, of which JSON is a part."""
    import yaml

    return yaml.safe_load(value) if isinstance(value, str) else value


@dataclass
class ModelArguments:
    """Which model to train: a saved one, one on two pretrained encoders, or one from scratch."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or hub id of a saved JMCELN to train on."}
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of a vision backbone to begin from, with `text_model`, or with the `text_config`"
            " of `model_config` for a text encoder from scratch."
        },
    )
    text_model: str | None = field(
        default=None, metadata={"help": "Folder or hub id of a text encoder and its tokenizer to begin from."}
    )
    model_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of JMCELNConfig. Without any of the three above, the model is made from them alone with"
            " random weights. On the command line also one by one: `--model_config.num_stages 4`."
        },
    )
    new_parts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts of `model_name_or_path` to begin anew with random weights, as `model_config` changes them:"
            " `--new_parts cascade --model_config.num_stages 4`."
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of a tokenizer, or `words` to build one of the words of the training data."
            " Defaults to that of `model_name_or_path` or `text_model`."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of the model's input. Defaults to the processor's own."}
    )
    keep_aspect_ratio: bool | None = field(
        default=None, metadata={"help": "Scale and pad images instead of stretching them to `image_size`."}
    )
    max_words: int | None = field(
        default=None, metadata={"help": "Most tokens of an expression; longer ones are cut off."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "`sdpa`, `eager` or another one."})
    trust_remote_code: bool = field(
        default=False,
        metadata={
            "help": "Run the code that comes with `model_name_or_path`. A JMCELN needs none of it: its classes are"
            " those that are installed."
        },
    )

    def __post_init__(self) -> None:
        self.model_config = dict(_parsed(self.model_config) or {})
        if self.text_model is not None and self.vision_model is None:
            raise ValueError("`text_model` begins from a pretrained encoder; name a `vision_model` to go with it.")
        if self.vision_model is not None and (self.text_model is None) == ("text_config" not in self.model_config):
            raise ValueError(
                "`vision_model` needs either a `text_model`, or a `text_config` in `model_config` for a text encoder"
                " from scratch."
            )
        if self.new_parts and self.model_name_or_path is None:
            raise ValueError("`new_parts` are those of a saved model; name it with `model_name_or_path`.")
        describes_another = self.vision_model is not None or (self.model_config and not self.new_parts)
        if self.model_name_or_path is not None and describes_another:
            raise ValueError(
                "`model_name_or_path` names a whole model, beside which `vision_model` and `text_model` have no place,"
                " nor has `model_config` without `new_parts`."
            )
        if self.model_name_or_path is None and self.vision_model is None and not self.model_config:
            raise ValueError(
                "No model is named. Give `model_name_or_path`, or `vision_model` and `text_model`, or `model_config`."
            )
        if self.model_name_or_path is None and self.text_model is None and self.tokenizer is None:
            raise ValueError("A model from scratch needs a `tokenizer`: a folder or hub id, or `words`.")
        check_config_fields(self.model_config, JMCELNConfig(), "model_config")


@dataclass
class DataArguments:
    """What to train and to score on."""

    train_data: list | str | None = field(
        default=None,
        metadata={
            "help": "List of datasets, each the arguments of `load_referring_dataset` as a mapping, or of"
            " `shapes_dataset` with `name: shapes`."
        },
    )
    eval_data: dict | str | None = field(
        default=None,
        metadata={"help": "Datasets to score, by name; each written as in `train_data`."},
    )
    held_out_data: list | str | None = field(
        default=None,
        metadata={
            "help": "Datasets whose validation and test images are dropped from training wherever they occur, each"
            " the arguments of `held_out_image_ids` as a mapping with `name`."
        },
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Folder of COCO images, for datasets that name images by path only."}
    )
    max_expressions_per_image: int = field(
        default=8, metadata={"help": "Most expressions of an image in one step; which, is drawn anew each time."}
    )
    max_expressions_per_image_eval: int = field(
        default=16,
        metadata={"help": "Most expressions of an image at a time in evaluation; none is lost."},
    )
    epoch_unit: str = field(
        default="referents",
        metadata={
            "help": "What an epoch has as many expressions as: `referents` (the field's practice), `sentences`; or"
            " `images` for one pass over the images.",
            "choices": ["referents", "sentences", "images"],
        },
    )
    max_train_images: int | None = field(default=None, metadata={"help": "Train on the first images only."})
    max_eval_images: int | None = field(default=None, metadata={"help": "Score the first images only."})
    image_mask_ratio: float = field(
        default=0.0, metadata={"help": "Share of the patches of a masked image that are blanked (MaskRIS: 0.75)."}
    )
    image_patch_size: int = field(default=32, metadata={"help": "Side of a masked patch in pixels."})
    text_mask_ratio: float = field(
        default=0.0, metadata={"help": "Share of the words of a masked image's expressions to mask (MaskRIS: 0.15)."}
    )
    word_dropout: float = field(
        default=0.0, metadata={"help": "Share of the words of a masked image's expressions to leave out."}
    )
    masking_probability: float = field(
        default=0.5, metadata={"help": "Chance that an image and its expressions are masked at all."}
    )

    def __post_init__(self) -> None:
        self.train_data = list(_parsed(self.train_data) or [])
        self.eval_data = dict(_parsed(self.eval_data) or {})
        self.held_out_data = list(_parsed(self.held_out_data) or [])
        specifications = [*self.train_data, *self.eval_data.values(), *self.held_out_data]
        bad = [specification for specification in specifications if not isinstance(specification, Mapping)]
        if bad:
            raise ValueError(f"A dataset is a mapping, such as {{name: ..., split: train}}; got {bad[0]!r}.")


@dataclass
class ReferringTrainingArguments(TrainingArguments):
    """The arguments of the Trainer, with those that this project adds, and with its defaults."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator reads columns that the model does not know."}
    )
    batch_eval_metrics: bool = field(
        default=True, metadata={"help": "Must stay on: scores are summed batch by batch, so that no mask is kept."}
    )
    report_to: str | None = field(
        default="tensorboard", metadata={"help": "Where to report: `tensorboard`, `none` or another integration."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "`auto` takes up the newest intact checkpoint of `output_dir` if there is one, `never` begins"
            " anew, anything else is the path of a checkpoint."
        },
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata={
            "help": "Whether DDP looks for parameters that a step leaves unused. There are none: those of the encoders"
            " that no mask depends on are found at the start, and do not learn."
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
        metadata={"help": "Leave the vision backbone as it is: weights, and statistics of batch normalisation."},
    )
    freeze_text: bool = field(default=False, metadata={"help": "Leave the text encoder as it is."})
    freeze_batch_norm: bool = field(
        default=False,
        metadata={
            "help": "Leave the statistics of the backbone's batch normalisation as they are, for batches too small to"
            " measure them; its weights learn."
        },
    )
    freeze_modules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further modules to leave as they are, by their names in the model: `text_model.embeddings"
            " backbone.encoder.layer.0`."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Decay of an average of the weights, which is scored, and saved at the end."},
    )
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Rank of low-rank adapters (LoRA) that learn in place of the encoders' matrices, and are merged"
            " into them at the end; 0 for none. Needs `peft`."
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
        default=4, metadata={"help": "Images whose predictions are shown in TensorBoard at each evaluation."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Pinned memory is memory of an accelerator's driver; without one it only brings a warning.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.remove_unused_columns or not self.batch_eval_metrics:
            raise ValueError("`remove_unused_columns` must stay off and `batch_eval_metrics` on; leave both out.")
        # An average over the processes of what each has counted alone would not be the loss.
        if not self.average_tokens_across_devices:
            raise ValueError("`average_tokens_across_devices` must stay on: the loss is one sum over all processes.")
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError("`early_stopping_patience` needs `load_best_model_at_end: true`.")
        if self.lora_rank and self.ema_decay is not None:
            raise ValueError("`lora_rank` and `ema_decay` do not go together; leave one of them out.")

    @property
    def learning_rate_scales(self) -> dict[str, float]:
        """Factors of the learning rate by the prefix of parameters' names; only those that differ from 1."""
        scales = {"backbone.": self.backbone_learning_rate_scale, "text_model.": self.text_learning_rate_scale}
        return {prefix: scale for prefix, scale in scales.items() if scale != 1.0}


ARGUMENT_CLASSES = (ModelArguments, DataArguments, ReferringTrainingArguments)


# A link to configs/ in a checkout, and a folder of its own where the package is installed.
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def find_settings_file(name: str | Path) -> Path:
    """
    The file `name`, or that of the package's own configurations: `refcoco.yaml` is found wherever one stands.

    Raises:
        FileNotFoundError: if there is neither, with the nearest name.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.name == str(name) and (CONFIGS / name).is_file():
        return CONFIGS / name
    names = [path.name for path in sorted(CONFIGS.glob("*.yaml"))]
    raise FileNotFoundError(
        f"There is no file {str(name)!r}{nearest_name(path.name, names)} The package brings along {', '.join(names)}."
    )


def load_settings(path: str | Path) -> dict[str, Any]:
    """
    Read the settings of a run from a YAML file, and first those of the file that its key `extends` names.

    Args:
        path (`str` or `Path`): A file, or the name of one of the package's own, such as `refcoco.yaml`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file does not hold a mapping.
    """
    import yaml

    path = find_settings_file(path)
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of settings, but holds a {type(settings).__name__}.")
    base = settings.pop("extends", None)
    return settings if base is None else merge_settings(load_settings(path.parent / base), settings)


def merge_settings(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `override`; mappings within are merged, everything else is replaced."""
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
    Read the settings of a run: YAML files first, in order, then options.

    Args:
        arguments (`Sequence[str]`):
            What follows the name of the script: any number of YAML files, then `--field value`. A field within a
            mapping or a list is reached by dots: `--model_config.num_stages 4`, `--train_data.0.split val`.
        description (`str`, *optional*):
            Text at the top of `--help`.
        argument_classes (`Sequence[type]`, *optional*):
            The dataclasses whose fields can be set, by default those of the model, of the data and of the training.
        prog (`str`, *optional*, defaults to `"jmceln train"`):
            The command that `--help` names.

    Returns:
        An instance of each class.

    Raises:
        ValueError: for a setting that no argument has, with the nearest name.
    """
    names = list(arguments)
    files = []
    while names and not names[0].startswith("-"):
        files.append(names.pop(0))
    settings: dict[str, Any] = {}
    for file in files:
        settings = merge_settings(settings, load_settings(file))
    if any(name.partition("=")[0] == "--model_name_or_path" for name in names):
        # A whole model named on the command line takes the place of the one that the files describe in parts.
        # Fields of parts to begin anew go with any saved model.
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
    known = {field.name for argument_class in argument_classes for field in dataclasses.fields(argument_class)}
    for name in settings:
        if name not in known:
            raise ValueError(f"There is no setting `{name}`{nearest_name(name, known, '; `--help` lists all.')}")
    parser.set_defaults(**settings)
    for option in parser.parse_known_args(options)[1]:
        if not option.startswith("--"):
            raise ValueError(f"`{option}` is neither an option nor the value of one; files come before all options.")
        name = option.partition("=")[0].removeprefix("--").replace("-", "_")
        raise ValueError(f"There is no option `{option}`{nearest_name(name, known, '; `--help` lists all.')}")
    return parser.parse_args_into_dataclasses(args=options, look_for_args_file=False)


def _take_dotted_options(options: Sequence[str], settings: dict[str, Any]) -> list[str]:
    """Write options such as `--model_config.num_stages 4` into `settings`, and return the others."""
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
                raise ValueError(f"`{option}` has no value.")
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
            raise ValueError(f"`{name}` leads into {target!r}, which has no parts.")
    return others


def _position(key: str, target: list, name: str) -> int:
    if not key.isdigit() or int(key) >= len(target):
        raise ValueError(f"`{name}`: {key!r} is no position in a list of {len(target)}.")
    return int(key)

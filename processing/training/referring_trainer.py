"""A [`Trainer`] for several expressions per image, with an exact loss scale, averaged weights and exact resumption."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ..pipeline_jmceln import check_finite_weights
from .checkpoints import check_files, delete_old_checkpoints, write_checksums
from .finite_steps import IMAGE_IDS, FiniteSteps, NamedBatches
from .image_sampler import ImageSampler
from .lora import has_adapters, load_adapted_weights, save_adapted_weights
from .parameter_groups import decaying_parameter_names, parameter_groups
from .run_settings import write_settings
from .training_data import StreamedImages
from .weight_average import WeightAverage


class ReferringTrainer(Trainer):
    """
    [`Trainer`] for models for referring image segmentation with several expressions per image.

    It differs from [`Trainer`] in the following:

    - The loss of a step is the mean over the expressions of all its micro-batches on all processes. Images have
      different numbers of expressions, so a mean of means would give some expressions more weight than others.
    - `eval_loss` is also the mean over all expressions. Processes gather the results of
      `preprocess_logits_for_metrics`, not the masks.
    - Encoders have their own learning rates, and only matrices and kernels have weight decay.
    - With `ema_decay`, evaluation and `save_final_model` use the averaged weights.
    - `train_sampler` determines the order of images.
    - A loss or a gradient that is not finite stops the run, and weights that are not finite are neither loaded nor
      saved.
    - Checkpoints have a file of hashes (see [`~processing.training.checkpoints.check_files`]).

    Args:
        train_sampler ([`~processing.training.image_sampler.ImageSampler`], *optional*):
            Order of the rows of a map-style `train_dataset` of [`~processing.training.image_sampler.DrawnImages`].
        train_data_collator (`Callable`, *optional*):
            Collator for training; `data_collator` is the one for evaluation.
        learning_rate_scales (`Mapping[str, float]`, *optional*):
            Factor of the learning rate by the prefix of the parameter names.
        ema_decay (`float`, *optional*):
            Decay of the moving average of the weights. `None` keeps no average.
        modules_in_eval_mode (`Sequence[nn.Module]`, *optional*):
            Parts of the model that stay in evaluation mode during training, such as frozen encoders.
        settings (`Mapping`, *optional*):
            Settings of the run, to be saved next to its weights.
        kwargs: See [`Trainer`].

    Raises:
        ValueError: If `ema_decay` is used with FSDP or DeepSpeed, which keep only parts of the weights per process, or
            if one process has several GPUs.
    """

    def __init__(
        self,
        *args: Any,
        train_sampler: ImageSampler | None = None,
        train_data_collator: Any = None,
        learning_rate_scales: Mapping[str, float] | None = None,
        ema_decay: float | None = None,
        modules_in_eval_mode: Sequence[torch.nn.Module] = (),
        settings: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._reduce_outputs = kwargs.pop("preprocess_logits_for_metrics", None)
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process would train on {self.args.n_gpu} GPUs with DataParallel, which scales the loss wrongly."
                " Start one process per GPU (`torchrun --nproc_per_node ...`), or use a single GPU"
                " (`CUDA_VISIBLE_DEVICES=0`)."
            )
        # The model divides the loss by the number of expressions, so the Trainer must not scale it again.
        self.model_accepts_loss_kwargs = True
        self.train_sampler = train_sampler
        self.train_data_collator = train_data_collator
        self.learning_rate_scales = dict(learning_rate_scales or {})
        self.modules_in_eval_mode = tuple(modules_in_eval_mode)
        self.settings = settings
        # Determined before FSDP flattens the parameters of the model.
        self._decaying = decaying_parameter_names(self.model)
        self._model_class = type(self.model)
        self.weight_average = None
        if ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "`ema_decay` needs all weights on every process, which FSDP and DeepSpeed do not keep. Omit it, or"
                    " train with DDP."
                )
            self.weight_average = WeightAverage(self.model, ema_decay)
        self._evaluated = [0.0, 0.0]
        self._finite_steps = FiniteSteps()
        self.add_callback(self._finite_steps)
        self.add_callback(_EpochAndAverage(self.train_dataset, self.train_sampler, self.weight_average))

    # Data

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Returns the data loader for training, which uses `train_data_collator`."""
        if isinstance(self.train_dataset, StreamedImages):
            return self._stream_dataloader(self.train_dataset)
        evaluation_collator = self.data_collator
        self.data_collator = NamedBatches(self.train_data_collator or self.data_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = evaluation_collator

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.train_sampler is None or isinstance(dataset, IterableDataset):
            return super()._get_train_sampler(train_dataset)
        return self.train_sampler

    def _stream_dataloader(self, stream: StreamedImages) -> torch.utils.data.DataLoader:
        # Not `accelerator.prepare`, which would shard the data again: each process already has its part of the stream.
        stream.batch_size = self._train_batch_size
        loader = torch.utils.data.DataLoader(
            stream,
            batch_size=self._train_batch_size,
            collate_fn=NamedBatches(self.train_data_collator or self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        return prepare_data_loader(
            loader,
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    # Loss

    def compute_loss(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As in [`Trainer`], but keeps some modules in evaluation mode: the Trainer sets the mode before each step."""
        for module in self.modules_in_eval_mode:
            module.eval()
        return super().compute_loss(model, *args, **kwargs)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in [`Trainer`], but stops at a loss that is not finite."""
        image_ids = inputs.pop(IMAGE_IDS, ())
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._finite_steps.check_loss(loss, image_ids, self.args, self.state)
        return loss

    def _get_num_items_in_batch(
        self, batch_samples: Sequence[Mapping[str, Any]], device: torch.device
    ) -> torch.Tensor | None:
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        count = sum(count_expressions_in_batch(batch) for batch in batch_samples)
        count = torch.tensor(count, dtype=torch.float32, device=device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        """As in [`Trainer`], but also accumulates the sums for `eval_loss`."""
        step = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if step[0] is not None:
            count = self._get_num_items_in_batch([inputs], step[0].device)
            # The loss is the sum of this process divided by the count of all processes, times the number of processes,
            # since DDP averages over processes.
            self._evaluated[0] += float(step[0]) * float(count) / self.args.world_size
            self._evaluated[1] += count_expressions_in_batch(inputs)
        loss, outputs, labels = step
        if self._reduce_outputs is None or outputs is None or labels is None:
            return step
        # The outputs are reduced before processes gather them, so that no masks are gathered.
        return loss, self._reduce_outputs(outputs, labels), labels[..., 0, 0]

    # Optimizer and averaged weights

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates an optimizer with a learning rate per part of the model. Only matrices and kernels decay."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(
                model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                learning_rate_scales=self.learning_rate_scales,
                decaying=self._decaying,
            )
            self.optimizer = optimizer_class(groups, **optimizer_kwargs)
        return self.optimizer

    def averaged_weights(self) -> Any:
        """Returns a context in which the model has its averaged weights, if there are any."""
        return nullcontext() if self.weight_average is None else self.weight_average.applied(self.model)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As in [`Trainer`], but with the averaged weights and the mean loss over expressions."""
        self._evaluated = [0.0, 0.0]
        with self.averaged_weights():
            output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if output.metrics is not None and f"{prefix}_loss" in output.metrics:
            sums = torch.tensor([self._evaluated], dtype=torch.float64, device=self.args.device)
            loss, count = self.accelerator.gather(sums).sum(0).tolist()
            output.metrics[f"{prefix}_loss"] = loss / max(count, 1)
        return output

    # Checkpoints

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        output_dir = Path(self._get_output_dir(trial=kwargs.get("trial")))
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        # The Trainer would choose the checkpoints to delete by the clock, which may have been set back, and before
        # the new one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(*args, **kwargs)
            self.accelerator.wait_for_everyone()  # other processes write their own files
            if self.args.should_save:
                write_checksums(folder)
                if limit is not None and limit > 0:
                    delete_old_checkpoints(folder, limit, keep=self.state.best_model_checkpoint)
        # The writers of the files raise different errors when the disk is full.
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"The checkpoint {str(folder)!r} cannot be written: {error}. If the disk is full, make room, and start"
                " the run again with the same command: it resumes from its newest checkpoint."
            ) from error
        finally:
            self.args.save_total_limit = limit

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        sharded = self.model
        check_finite_weights(sharded if state_dict is None else state_dict, "The model to save")
        if self.is_fsdp_enabled and state_dict is not None:
            # FSDP2 changes the class of the model, and the saved files would refer to that class.
            with torch.device("meta"):
                self.model = self._model_class(sharded.config)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.model = sharded
        if has_adapters(self.model):
            save_adapted_weights(self.model, self.args.output_dir if output_dir is None else output_dir)
        if self.settings is not None:
            write_settings(self.settings, self.args.output_dir if output_dir is None else output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._read_weights(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        check_files(self.state.best_model_checkpoint)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(self.model, PreTrainedModel):
            super()._load_best_model()
        else:
            self._read_weights(self.state.best_model_checkpoint, self.model)
        # The averaged weights were evaluated.
        if self.weight_average is not None:
            self.weight_average.load(self.state.best_model_checkpoint)

    @staticmethod
    def _read_weights(folder: str, model: PreTrainedModel) -> None:
        if has_adapters(model):
            load_adapted_weights(model, folder)
            return
        # `save_pretrained` gives some weights names of older releases, and `from_pretrained` converts them back. The
        # Trainer loads the file without conversion and ignores all weights whose names differ, for example those of a
        # whole Swin backbone, which then stay random (huggingface/transformers issue 43701).
        loaded: Any = type(model).from_pretrained(
            folder, config=model.config, dtype=model.dtype, output_loading_info=True
        )
        saved, loading = loaded
        different = {kind: sorted(names)[:5] for kind, names in loading.items() if names}
        if different:
            raise ValueError(f"The weights in {folder} do not belong to this model: {different}.")
        check_finite_weights(saved, f"The model in {folder}")
        model.load_state_dict(saved.state_dict())

    @staticmethod
    def took_its_last_step(checkpoint: str) -> bool:
        """Whether a checkpoint is from the last step of its run. [`Trainer`] would train for one more step."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        return 0 < state.max_steps <= state.global_step

    def load_last_step(self, checkpoint: str) -> None:
        """Restores the state after the last step from its checkpoint."""
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        self._read_weights(checkpoint, self.model)
        if self.weight_average is not None:
            self.weight_average.load(checkpoint)
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def save_final_model(self, output_dir: str | None = None) -> None:
        """Saves the model with its averaged weights, if there are any."""
        with self.averaged_weights():
            self.save_model(output_dir, _internal_call=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer pushes the weights and the configuration of a checkpoint, but not the code that they need.
        if self.is_world_process_zero():
            for path in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(path, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in [`Trainer`], but adds the tags of this kind of model."""
        kwargs["tags"] = sorted({*(kwargs.get("tags") or ()), "referring-image-segmentation", "custom_code"})
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "README.md"
            card = ModelCard.load(path)
            card.data.pipeline_tag = "image-segmentation"
            card.save(path)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.weight_average is not None and self.args.should_save:
            self.weight_average.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.weight_average is not None and checkpoint is not None:
            self.weight_average.load(checkpoint)


class _EpochAndAverage(TrainerCallback):
    """
    Sets the position in the data when a run is resumed, and updates the averaged weights after each step, before
    anything is logged, evaluated or saved.

    If there is no data, it raises an error before an untrained model is saved.
    """

    def __init__(self, dataset: Any, sampler: ImageSampler | None, average: WeightAverage | None):
        self.stream = dataset if isinstance(dataset, StreamedImages) else None
        self.sampler = sampler
        self.average = average

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if self.stream is not None and not args.ignore_data_skip:
            self.stream.skipped_batches = state.global_step * args.gradient_accumulation_steps

    def on_epoch_end(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        if state.global_step == 0:
            raise ValueError("No step was taken, since the training data has no usable row. See the log for bad rows.")

    def on_epoch_begin(self, _: TrainingArguments, state: TrainerState, *__: Any, **___: Any) -> None:
        # The data loader sets the epoch of its sampler, but not while it skips batches.
        if self.sampler is not None:
            self.sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        if self.average is not None:
            self.average.update(model)


def count_expressions_in_batch(batch: Mapping[str, Any]) -> int:
    """Counts the expressions of a batch that are not padding."""
    return int(batch["attention_mask"].any(dim=-1).sum())

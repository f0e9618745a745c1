"""The typed config of `train`: pretraining, continued pretraining and instruction tuning."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ByteSize, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.adapters.config import NAMES as ADAPTERS
from luban.adapters.config import AnyAdapter
from luban.foundation.config import Auto, Config, field
from luban.foundation.durations import Duration, TimeSpan
from luban.inference.config import SamplingConfig
from luban.models.quantization_config import AnyQuantization
from luban.models.shape import ShapeConfig
from luban.models.shapes import AnyShape
from luban.objectives.config import AnyObjective, CausalConfig
from luban.training.regularization import RegularizationConfig

# What `auto` is for each optimizer, and the bytes of state that it holds for a parameter of a matrix. Lion's are its paper's (arXiv:2302.06675): rates three to ten times smaller than AdamW's, decay as much larger.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.95), "momentum": 0.0, "weight_decay": 0.1, "state_bytes": 8.0},
    "adamw_8bit": {"betas": (0.9, 0.95), "momentum": 0.0, "weight_decay": 0.1, "state_bytes": 2.03},
    "adafactor": {"betas": (0.9, 0.95), "momentum": 0.0, "weight_decay": 0.0, "state_bytes": 0.0},
    "lion": {"betas": (0.9, 0.99), "momentum": 0.0, "weight_decay": 0.5, "state_bytes": 4.0},
    "muon": {"betas": (0.9, 0.95), "momentum": 0.95, "weight_decay": 0.0, "state_bytes": 4.0},
    "sgd": {"betas": (0.9, 0.95), "momentum": 0.9, "weight_decay": 0.0, "state_bytes": 4.0},
}


def _former_recompute(value: Any) -> Any:
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


Recompute = Annotated[Literal["none", "selective", "full"] | ByteSize, BeforeValidator(_former_recompute)]


class OptimizerConfig(Config):
    """How gradients become steps."""

    name: Literal["adamw", "adamw_8bit", "adafactor", "lion", "muon", "sgd"] = field("adamw", "adamw; adamw_8bit: its moments in a byte each; adafactor: a row and a column of moments for a matrix; lion: one moment; muon: Muon on the hidden matrices, AdamW on embeddings, norms and the head; sgd: momentum alone.")
    learning_rate: PositiveFloat | Auto = field("auto", "Peak learning rate; auto follows the optimizer, the model's width and depth, and the objective.")
    embedding_learning_rate: PositiveFloat | Auto = field("auto", "Peak learning rate of the embeddings and the head; auto: learning_rate, with muon a higher one.")
    matrix_learning_rate: PositiveFloat | Auto = field("auto", "Peak learning rate of Muon's matrices (with muon only).")
    weight_decay: NonNegativeFloat | Auto = field("auto", "Decoupled weight decay, on matrices only; auto: 0.1 with adamw and adamw_8bit, 0.5 with lion, 0 with the others.")
    betas: tuple[NonNegativeFloat, NonNegativeFloat] | Auto = field("auto", "Decay rates of AdamW's first and second moment (auto: 0.9, 0.95), or Lion's two (auto: 0.9, 0.99).")
    epsilon: PositiveFloat = field(1e-8, "AdamW's term against division by zero.")
    momentum: Annotated[float, Field(ge=0, lt=1)] | Auto = field("auto", "Momentum of Muon (auto: 0.95), SGD (auto: 0.9) and Adafactor (auto: 0, which holds no state for it).")
    nesterov: bool = field(True, "SGD looks ahead along its momentum.")
    state: Literal["memory", "disk"] = field("memory", "Where the optimizer's state lies. disk: in files beside the run, of which one matrix's state at a time is read and written; with engine: layerwise, on a processor.", role="machine", later=True)
    relative_step: bool = field(False, "Adafactor's rates are shares of each parameter's own root mean square (0.001 at least), as in its paper; otherwise absolute, as AdamW's.")

    def settled(self, name: str) -> Any:
        """``betas``, ``momentum`` or ``weight_decay``, as written or what auto means for this optimizer."""
        return OPTIMIZERS[self.name][name] if (value := getattr(self, name)) == "auto" else value


class ScheduleConfig(Config):
    """How the learning rate moves over the run."""

    shape: Literal["cosine", "linear", "exponential", "warmup_stable_decay", "constant"] = field("cosine", "The curve after warm-up. constant and warmup_stable_decay let a finished run be continued when its length grows.")
    warmup: Duration | Auto = field("auto", "Length of the linear rise from zero; auto is 5 % of the run, at most 2,000 steps.")
    decay_share: PositiveFloat = field(0.2, "Share of the run over which the rate decays (warmup_stable_decay).")
    final: NonNegativeFloat = field(0.1, "Learning rate at the end as a share of the peak.")


class CheckpointConfig(Config):
    """When the training state is saved so that a killed run continues."""

    every: Duration | Auto = field("auto", "Length between checkpoints; auto: what loses the least time for what a save costs and failures_every, a tenth of the run at most.", role="machine")
    failures_every: TimeSpan = field("1d", "How long this machine runs, on average, until something ends the run; for every: auto.", role="machine")
    keep: PositiveInt = field(2, "How many of the newest checkpoints stay.", unit="checkpoints", role="machine")
    permanent: Duration | None = field(None, "A checkpoint after each such length stays for good; none does by default.", role="machine")
    ephemeral: TimeSpan | None = field(None, "Between them also save after each such time, such as 5m; the next checkpoint takes the place of such a one.", role="machine")
    behind: bool | Auto = field("auto", "Copy the state and write it while the steps go on; auto: where the copy takes no more than a quarter of the free memory.", role="machine")


AnyOptimizer = Annotated[OptimizerConfig, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]  # optimizer: muon


class ValidationConfig(Config):
    """How held-out text is scored during training."""

    every: Duration | Auto = field("auto", "Length between validations; auto is a tenth of the run.", role="machine")
    share: NonNegativeFloat = field(0.05, "Share of the conversations or examples held out when no validation data is given.")
    general: str | list[str] = field([], "encode stages or folders whose held-out text is scored before and after, which says how much is forgotten; by default those that the base was trained on, where they still lie beside it.", input=True)
    folds: Annotated[int, Field(ge=0, le=100)] = field(0, "k-fold cross-validation of a task: train once for each fold on the others first, and report the mean and deviation; the model that is saved learns from everything but the validation share. 0: none.", unit="folds")
    maximum_examples: PositiveInt = field(2000, "The most held-out examples whose task metrics are taken at each validation.", unit="examples")
    restore_best: bool | Auto = field("auto", "End with the weights of the best validation rather than the last; auto: yes for task objectives that have held-out examples.")
    patience: int = field(0, "Early stopping: validations without a new best (of the task's main metric, or of the loss) before the run stops; 0 never stops.", unit="validations")
    minimum_gain: NonNegativeFloat = field(0.0, "Early stopping: a smaller gain does not count as a new best.")


class SamplesConfig(Config):
    """Text written by the model during training."""

    every: Duration | Auto = field("auto", "Length between samples; auto is a quarter of the run.", role="machine")
    prompts: list[str] = field([], "What to continue (causal), to ask (instruction) or to fill ([MASK], <extra_id_0>); none means no samples.", role="machine")
    sampling: SamplingConfig = field(SamplingConfig(maximum_tokens=48), "How the samples are drawn; also written into generation_config.json, so that chat and serve use the same settings.")


class AlertsConfig(Config):
    """When a run speaks up, and to whom. Each rule is a threshold; 0 turns it off."""

    loss_not_finite: NonNegativeInt = field(0, "Alert after so many steps in a row whose loss or gradient is not finite.", unit="steps", role="machine")
    no_step_minutes: NonNegativeFloat = field(0.0, "Alert when no step has ended for so long; a validation counts as no step.", unit="minutes", role="machine")
    throughput: Annotated[float, Field(ge=0, le=1)] = field(0.0, "Alert when the tokens a second of the last 20 steps are below this share of what the run usually makes; 0.5 is half.", role="machine")
    validation_rising: NonNegativeInt = field(0, "Alert after so many validations in a row whose loss is higher than the one before.", unit="validations", role="machine")
    disk_free: ByteSize = field(ByteSize(0), "Alert when the disk of the run has less space left, such as 5 GiB.", role="machine")
    webhook: str = field("", "Address (http or https) that gets each alert as a JSON POST.", role="machine", pattern=r"^(https?://\S+)?$")
    webhook_variable: str = field("", "Name of the environment variable that holds the address, where the address itself is a secret.", role="machine")
    command: str = field("", "Command that is started for each alert and gets it as JSON on standard input; split into words as a shell would, and run without one.", role="machine")
    repeat_minutes: PositiveFloat = field(60.0, "How long a rule that has spoken stays silent while its cause lasts.", unit="minutes", role="machine")


class EnergyConfig(Config):
    """How the energy of a run is known, and what it weighs in CO2."""

    watts: PositiveFloat | Auto = field("auto", "Power of what the run uses, where you know it; auto reads the meters of the machine (RAPL, NVML) and else takes a model: 12 W a core in use, 0.3725 W a gigabyte held.", unit="watts", role="machine")
    grams_per_kilowatt_hour: NonNegativeFloat = field(436.0, "Grams of CO2 that a kilowatt-hour stands for; 436 is the world's average of 2022 (Ember, Global Electricity Review 2023).", unit="grams", role="machine")


class TrackConfig(Config):
    """Where the numbers go beside the terminal and training/log.jsonl."""

    every: PositiveInt = field(10, "Steps between the printed lines; the log file has every step.", unit="steps", role="machine")
    tensorboard: bool = field(True, "Write TensorBoard event files to training/events.", role="machine")
    wandb: str = field("", "Name of a Weights & Biases project to report to; empty reports nowhere.", role="machine")
    mlflow: str = field("", "Name of an MLflow experiment to report to; empty reports nowhere.", role="machine")
    mlflow_server: str = field("", "Where MLflow keeps it: the address of a tracking server, or sqlite:///file.db; empty: what MLflow itself is set to.", role="machine")
    trackio: str = field("", "Name of a trackio project to report to; empty reports nowhere.", role="machine")
    prometheus: str = field("", "Serve Prometheus metrics while the run lasts, such as 127.0.0.1:9400; port 0 takes a free one.", role="machine", pattern=r"^(.+:\d{1,5})?$")
    prometheus_file: str = field("", "Write the same metrics to this file, ending in .prom, for node_exporter's textfile collector.", role="machine")
    alerts: AlertsConfig = field(AlertsConfig(), "When the run speaks up, and to whom.")
    energy: EnergyConfig = field(EnergyConfig(), "How energy and CO2 are reckoned.")


Limit = TimeSpan | Literal["auto", "none"]


class WatchdogConfig(Config):
    """How long a section may last before it counts as hanging: a time such as 20m, auto, or none. auto is ten times the slowest so far, and never less than what the field says."""

    set_up: Limit = field("auto", "Reading data and model, before step one; auto is an hour.", role="machine")
    step: Limit = field("auto", "A step with its data; auto is at least 15 minutes, and an hour where something is compiled.", role="machine")
    evaluation: Limit = field("auto", "A validation, or samples; auto is at least an hour.", role="machine")
    checkpoint: Limit = field("auto", "Writing a checkpoint; auto is at least half an hour.", role="machine")


class GuardsConfig(Config):
    """What is watched at each step, and what happens when something is wrong."""

    too_many: PositiveInt = field(10, "Refused steps in a row that stop the run.", unit="steps", role="machine")
    keep_batches: NonNegativeInt = field(20, "Refused steps whose text is kept for a look, in training/refused.", unit="steps", role="machine")
    spikes: Literal["none", "skip", "rollback"] = field("none", "A step whose loss jumps: skip does not apply it; rollback goes back to the last checkpoint and passes over the data read since.")
    spike_threshold: PositiveFloat = field(8.0, "A spike is so many robust deviations (from the median absolute difference of neighbours) above the median of the last losses.", unit="deviations")
    gradient_threshold: NonNegativeFloat = field(0.0, "The same of the gradient norm; 0 looks at the loss alone.", unit="deviations")
    spike_window: Annotated[int, Field(ge=8, le=100_000)] = field(64, "Accepted steps that the median is of; nothing is a spike before a quarter of them is there.", unit="steps")
    layers_every: NonNegativeInt = field(0, "Log the gradient norm of each layer every so many steps; 0: only when something is wrong.", unit="steps", role="machine")
    layers_threshold: NonNegativeFloat = field(8.0, "Name the layers of a step whose gradient norm is so many robust deviations of its logarithm from the median, up or down; 0 never does.", unit="deviations", role="machine")
    recheck_every: NonNegativeInt = field(0, "Compute every so many steps the gradients twice and compare them, which finds processors that miscalculate; 0 never does.", unit="steps", role="machine")
    recheck_action: Literal["note", "stop"] = field("stop", "What a difference does: note writes it down, stop also ends the run before the step is applied.", role="machine")
    watchdog: WatchdogConfig = field(WatchdogConfig(), "When a section hangs: the stacks of all threads are written to training/ and the process ends with status 75.")


class OffloadConfig(Config):
    """What moves out of the memory that trains: under engine: deepspeed each as it says; under engine: torch shards with their gradients and states, so that both are cpu or neither."""

    optimizer: Literal["none", "cpu", "nvme"] = field("none", "Where the optimizer's state lies and its step is made: none: where the weights are; cpu: in the host's memory; nvme: in files, of which a part at a time is read (with layout.shard: full).", role="machine", later=True)
    weights: Literal["none", "cpu", "nvme"] = field("none", "Where each process's part of the weights waits until it is needed: none, in the memory that trains; cpu; nvme (with layout.shard: full).", role="machine", later=True)
    folder: str = field("", "Folder on a fast disk for what is offloaded to nvme; empty: beside the run's checkpoints.", role="machine", later=True)


class LayoutConfig(Config):
    """What each of the processes that torchrun starts holds of a model; the mathematics of a step is the same with any of them."""

    shard: Literal["auto", "none", "states", "gradients", "full"] = field("auto", "none: each process holds everything; states: the optimizer's state and the weights between steps are held in shards (ZeRO-1); gradients: the gradients too (ZeRO-2); full: the weights also during a step (ZeRO-3). auto: what fits by the planner's arithmetic on the devices that there are, none if that does.", role="machine")
    replicas: PositiveInt | Auto = field("auto", "How many times the model is held in all; the processes must divide by it. auto: once with shards, once a process without.", role="machine")
    tensor: PositiveInt = field(1, "Processes that share each matrix, as Megatron does: heads and inner widths must divide by it.", role="machine")
    sequence: bool | Auto = field("auto", "Whether those processes hold parts of the sequence where they would do the same work; auto: yes.", role="machine")
    context: PositiveInt = field(1, "Processes that share the places of each row and gather keys and values where they attend; for long sequences.", role="machine")
    expert: PositiveInt = field(1, "Processes, out of replicas × shards × context, that share the experts of each layer; tokens are sent to their experts.", role="machine")
    pipeline: PositiveInt = field(1, "Processes that the layers are shared out over, in stages one after another.", role="machine")
    schedule: Literal["1f1b", "interleaved", "zero_bubble"] = field("1f1b", "In which order a pipeline's stages pass micro-batches forward and back: 1f1b, one of each in turn; interleaved, with several stages a process, which waits less; zero_bubble, the gradients of weights computed where it would wait.", role="machine")
    stages_per_rank: PositiveInt | Auto = field("auto", "Stages that each process of a pipeline holds; auto: 1 with 1f1b, 2 with interleaved, and with zero_bubble 2 where there are layers enough.", role="machine")
    offload: OffloadConfig = field(OffloadConfig(), "What moves out of the memory that trains (engine: deepspeed, or torch with shards).", later=True)

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return {} if value == "auto" else value


class ReplayConfig(Config):
    """Old data mixed into continued pretraining, so that less is forgotten."""

    data: str | list[str] = field([], "encode stages or folders whose text is replayed.", input=True)
    share: NonNegativeFloat = field(0.0, "Share of the tokens read that is replayed, from 0 to below 1.")


class TrainConfig(Config):
    """Train a model from scratch or from a model directory."""

    objective: AnyObjective = field(CausalConfig(), "What is learned: a name such as causal, instruction, masked, classification or tagging; that name with settings, {name: classification, label_smoothing: 0.1}; or your own my_objective.py:Name.")
    data: str | list[str] = field(..., "What to learn from: encode stages or folders (objectives on running text), conversation files (instruction), labelled files (tasks).", input=True)
    mixture: list[PositiveFloat] = field([], "Shares of the rows read from each of `data` (causal), in their order; empty: in proportion to size.")
    mapping: dict[str, Any] = field({}, "Which column of the files holds what, such as {prompt: question, answer: reply} or {text: review, label: stars}; empty: recognised, and shown.")
    validation_data: str | list[str] = field([], "Held-out data; by default the validation split (causal) or a share (instruction).", input=True)
    model: str = field("", "Stage or Hugging Face model directory to start from; empty starts from random weights of `shape`.", input=True)
    from_step: PositiveInt | None = field(None, "Go on from the checkpoint after this step of `model`, a train stage: with its optimizer state and place in the data, under this stage's own length and schedule. Without: from its finished weights.", unit="steps", later=True)
    tokenizer: str = field("", "Tokenizer stage or folder; empty takes the data's or the model's own.", input=True)
    embeddings: str = field("", "Word vectors that a new model's token embeddings begin with: a fit stage, or a word2vec or GloVe file.", input=True)
    depth: PositiveInt | Auto = field("auto", "The one dial of a new model: width, heads, learning rate and batch follow from it where they are auto.", unit="layers")
    shape: AnyShape | str = field(ShapeConfig(), "A new model's shape, or the name of a preset; what is auto follows from depth.")
    adapter: AnyAdapter = field(None, "Learn an adapter and leave the model as it is: a method such as lora, dora, adalora, prefix or bitfit; that method with settings, {method: lora, rank: 16}.", short=(*ADAPTERS, "none"))
    quantization: AnyQuantization = field(None, "Hold the model's matrices in 4 or 8 bits under the adapter: nf4, int4 or int8, or that with settings, {format: int4, group_size: 32}.", short=("nf4", "int4", "int8", "none"))
    length: Duration = field("1 epochs", "How long to train.", role="length")
    sequence_length: PositiveInt | Auto = field("auto", "Tokens a row; auto is the model's maximum, at most 2,048.", unit="tokens")
    batch_tokens: PositiveInt | Auto = field("auto", "Tokens a step over all ranks and accumulation.", unit="tokens")
    batch_examples: PositiveInt | Auto = field("auto", "Examples a step, for objectives on labelled examples (batch_tokens is for those on text); auto is 32.", unit="examples")
    micro_batch_rows: PositiveInt | Literal["auto", "fit"] = field("auto", "Rows in one forward pass; this does not change the result of a step. fit tries in a process of its own how many the memory holds.", unit="rows", role="machine")
    packing: Literal["auto", "concatenate", "best_fit", "none"] = field("auto", "How documents fill rows: concatenate cuts one at a row's end and goes on in the next; best_fit keeps a document whole where it fits; none gives each a row of its own. auto: concatenate for causal, best_fit for the others, which do not know concatenate.")
    optimizer: AnyOptimizer = field(OptimizerConfig(), "The optimizer.")
    schedule: ScheduleConfig = field(ScheduleConfig(), "The learning rate over the run.")
    gradient_clip: NonNegativeFloat | Auto = field("auto", "Largest gradient norm; larger ones are scaled down; 0 never clips. auto: 1, and 0 with engine: layerwise, which never holds all gradients.")
    regularization: RegularizationConfig = field(RegularizationConfig(), "What makes small data go further: dropout, freezing, averaging, R-Drop, mixup, adversarial training.")
    replay: ReplayConfig = field(ReplayConfig(), "Old data to mix in.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = field("auto", "Arithmetic of the forward pass; auto follows the hardware and says why.", role="machine")
    determinism: Literal["auto", "strict"] = field("auto", "strict: the same bits again on the same machine, at some cost on GPUs.", role="machine")
    engine: Literal["torch", "layerwise", "deepspeed"] = field("torch", "torch; layerwise: the optimizer steps inside the backward pass, so that no gradients are held, with no clipping by the global norm and no accumulation; or deepspeed: DeepSpeed's ZeRO and its offloading, of the stage that layout.shard names.", alike={"deepspeed": "torch"})
    layout: LayoutConfig = field(LayoutConfig(), "How several processes share the work (torchrun --nproc-per-node 2 -m luban run …).")
    weights: Literal["float32", "bfloat16"] = field("float32", "How the weights are held while they learn; bfloat16 halves them, with stochastic rounding (optimizers adafactor, adamw_8bit, lion, sgd). Under an adapter: how its base is held.")
    recompute: Recompute = field("none", "Activations that are computed again in the backward pass: none; selective, all but the results of products and attention; full, each block from its input, a third more time; or a budget such as 2 GiB that the blocks' activations must fit.", role="machine")
    compile: bool | Auto = field("auto", "Compile the model's blocks with torch.compile; auto: where the time that the run would save is half as much again as compiling takes.", role="machine")
    cross_entropy: Literal["auto", "plain", "chunked"] = field("auto", "How a loss takes the product with the vocabulary: plain, all tokens of a micro-batch at once, where their logits are few; chunked, some at a time; auto measures both.", role="machine", later=True)
    attention: Literal["auto", "own", "torch"] = field("auto", "Whose code attends on a processor in float32: Luban's own, which is compiled with g++ at the first use, or torch's; auto is own where there is a compiler.", role="machine", later=True)
    layers: Literal["auto", "own", "torch"] = field("auto", "Whose code runs the layers of a decoder of the Llama kind, and cross-entropy, on a processor in float32: Luban's own, whose passes around the products are C++ (with attention: own; layers with biases, adapters or query-key norms stay torch's), or torch's; auto is own, unless compile is true or recompute is selective or a budget.", role="machine", later=True)
    threads: PositiveInt | Auto = field("auto", "Processor threads for arithmetic, of each process; auto is one a core, shared by the processes that torchrun starts.", unit="threads", role="machine")
    wall_clock: TimeSpan | None = field(None, "Save and leave with status 75 before so much time has passed since the stage began, such as 3h or 90m; the same command continues.", role="machine")
    guards: GuardsConfig = field(GuardsConfig(), "What is watched at each step.", later=True)
    validation: ValidationConfig = field(ValidationConfig(), "Scoring held-out data during the run.")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Saving the training state.")
    samples: SamplesConfig = field(SamplesConfig(), "Text written during the run.")
    track: TrackConfig = field(TrackConfig(), "Where the numbers go.")
    callbacks: list[str] = field([], "Your own functions, my_callbacks.py:name, called with the run after each step.", input=True)

    @property
    def open_ended(self) -> bool:
        """Whether the steps so far, or most of them, are those of a longer run too."""
        return self.schedule.shape in ("constant", "warmup_stable_decay")

    @property
    def objective_name(self) -> str:
        """The objective's name, or the user's own ``my_file.py:Name``."""
        return self.objective if isinstance(self.objective, str) else self.objective.name

    foreign: ClassVar[dict[str, str]] = {
        "num_train_epochs": 'length: "3 epochs"',
        "max_steps": 'length: "500 steps"',
        "per_device_train_batch_size": "batch_tokens (tokens of a whole step) and micro_batch_rows (rows of one forward pass)",
        "per_device_eval_batch_size": "micro_batch_rows",
        "gradient_accumulation_steps": "batch_tokens; accumulation follows from it and micro_batch_rows",
        "learning_rate": "optimizer.learning_rate",
        "lr": "optimizer.learning_rate",
        "weight_decay": "optimizer.weight_decay",
        "adam_beta1": "optimizer.betas",
        "adam_beta2": "optimizer.betas",
        "adam_epsilon": "optimizer.epsilon",
        "optim": "optimizer.name",
        "max_grad_norm": "gradient_clip",
        "lr_scheduler_type": "schedule.shape",
        "warmup_steps": 'schedule.warmup: "100 steps"',
        "warmup_ratio": "schedule.warmup (auto is 5 % of the run)",
        "save_steps": 'checkpoint.every: "500 steps"',
        "save_strategy": "checkpoint.every",
        "save_total_limit": "checkpoint.keep",
        "eval_steps": 'validation.every: "500 steps"',
        "eval_strategy": "validation.every",
        "evaluation_strategy": "validation.every",
        "early_stopping_patience": "validation.patience",
        "logging_steps": "track.every",
        "report_to": "track.tensorboard, track.wandb, track.mlflow, track.trackio, track.prometheus",
        "bf16": "precision: bfloat16",
        "fp16": "precision: float16",
        "torch_compile": "compile",
        "gradient_checkpointing": "recompute",
        "max_seq_length": "sequence_length",
        "max_length": "sequence_length",
        "block_size": "sequence_length",
        "model_name_or_path": "model",
        "dataset_name": "data",
        "train_file": "data",
        "validation_file": "validation_data",
        "output_dir": "out (of the recipe), or --out",
        "seed": "seed (of the recipe)",
        "resume_from_checkpoint": "nothing: the same command continues a stopped run",
    }

"""What `luban serve` can be told."""

from __future__ import annotations

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from luban.foundation.config import Auto, Config, field
from luban.inference.config import SamplingConfig


class ServeConfig(Config):
    """Answer over HTTP for one model, in OpenAI's format, until stopped."""

    foreign = {
        "lora_modules": "adapters",
        "enable_lora": "adapters",
        "max_model_len": "maximum_length",
        "max_num_seqs": "slots",
        "served_model_name": "name",
        "shutdown_timeout": "drain_seconds",
        "allowed_origins": "cors_origins",
        "generation_config": "sampling",
    }

    model: str = field(..., "The model to serve: a stage that trains one, or a model directory.", input=True)
    host: str = field("127.0.0.1", "The address to listen on; 127.0.0.1 is reached from this machine only.", role="machine")
    port: NonNegativeInt = field(8000, "The port to listen on; 0 takes a free one and prints it.", role="machine", le=65535)
    name: str | Auto = field(
        "auto", "The name that requests give as `model`; auto: the name of the model's folder.", role="machine", min_length=1
    )
    adapters: str | list[str] = field([], "Adapters of the model, each served under the name of its folder; a request chooses one by that name, and all share a batch.", input=True)
    slots: PositiveInt = field(8, "How many sequences are generated at once, in one batch.", unit="sequences", role="machine")
    maximum_length: PositiveInt | Auto = field(
        "auto", "The most tokens of prompt and answer together; auto: what the model was made for.", unit="tokens", role="machine"
    )
    maximum_waiting: NonNegativeInt = field(
        64, "How many sequences may wait for a slot; more are refused with status 429.", unit="sequences", role="machine"
    )
    rows: PositiveInt = field(32, "How many items are predicted at once, in one batch (/v1/predict, /v1/embeddings, /v1/rerank).", unit="items", role="machine")
    batch_window_seconds: NonNegativeFloat = field(
        0.004, "How long an item that finds the model idle waits for others to share its batch.", unit="seconds", role="machine", le=10
    )
    maximum_items: PositiveInt = field(
        1024, "How many items a request may hold; as many texts in a request for embeddings, as many documents in one for reranking.", unit="items", role="machine"
    )
    maximum_waiting_items: PositiveInt = field(
        8192, "How many items of all requests may wait or be at work; more are refused with status 429.", unit="items", role="machine"
    )
    maximum_characters: PositiveInt = field(1_000_000, "How many characters the items of a request may have together.", unit="characters", role="machine")
    maximum_body_bytes: PositiveInt = field(4 * 2**20, "The largest request body that is read.", unit="bytes", role="machine")
    request_seconds: PositiveFloat = field(
        600.0, "How long a request may take, waiting included, before it is given up.", unit="seconds", role="machine"
    )
    drain_seconds: NonNegativeFloat = field(
        30.0, "How long requests in flight may go on after the server was asked to stop.", unit="seconds", role="machine"
    )
    sampling: SamplingConfig = field(
        default_factory=SamplingConfig, doc="How tokens are drawn where a request does not say.", role="machine"
    )
    cors_origins: list[str] = field(
        default_factory=list,
        doc="Web pages of other origins that may call this server, such as https://example.org; none by default.",
        role="machine",
    )
    allow_template_mismatch: bool = field(
        False, "Serve even if the chat template is not the one the model was trained with.", role="machine"
    )

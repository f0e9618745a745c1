"""The shape of a new model, of whichever family: chosen by its ``architecture``."""

from __future__ import annotations

from luban.foundation.config import one_of
from luban.models.auto_shape import AutoShapeConfig
from luban.models.bart_shape import BartShapeConfig
from luban.models.bert_shape import BertShapeConfig
from luban.models.gpt2_shape import GPT2ShapeConfig
from luban.models.lstm_shape import BilstmShapeConfig, LstmShapeConfig
from luban.models.moe_shape import MixtureShapeConfig
from luban.models.recurrent_shape import RecurrentShapeConfig
from luban.models.shape import ShapeConfig
from luban.models.t5_shape import T5ShapeConfig

SHAPES = (
    ShapeConfig, GPT2ShapeConfig, BertShapeConfig, T5ShapeConfig, BartShapeConfig, MixtureShapeConfig,
    LstmShapeConfig, BilstmShapeConfig, RecurrentShapeConfig, AutoShapeConfig,
)  # fmt: skip
AnyShape = one_of("architecture", *SHAPES)

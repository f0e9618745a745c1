"""A training step of a job on one device of a layout, as its shadow (shadow.py): what it holds at the most, by purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luban.foundation.errors import ConfigError
from luban.models.recompute_plan import MODES, plan
from luban.planning.adapting import learning, wearing
from luban.planning.before import Prefixed, before_of
from luban.planning.bodies import Body, Llama, Split, unknown
from luban.planning.bodies_classic import GPT2, Bert, Pairs
from luban.planning.job import Habits, Job, Layout, bytes_of_codes
from luban.planning.shadow import Account, Node, Parameter, Storage, Tape, Value
from luban.planning.shards import Shards
from luban.planning.updates import moment_bytes, state_bytes

BODIES: dict[str, type[Body]] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "mixtral", "qwen2_moe", "qwen3_moe"), Llama), "gpt2": GPT2, **dict.fromkeys(("bert", "roberta", "xlm-roberta"), Bert),
    **dict.fromkeys(("t5", "mt5", "bart", "mbart", "marian"), Pairs),
}  # fmt: skip
CHUNK_LOGITS, CHUNK_TOKENS, DEVICE_CHUNK_LOGITS = 1 << 25, 256, 1 << 28  # of luban.objectives.losses, which needs torch to be read
BATCH_BYTES = 32  # a token of a step's batch: three int64, a float32 and an int32

IN_FLIGHT = 128 * 2**20  # bytes of gradients that are summed over replicas at once (parallel.sums)


class Step:
    """A device's part of a step. ``stage`` counts the stages of a pipeline from its input."""

    def __init__(self, job: Job, layout: Layout = Layout(), stage: int = 0):
        if job.shape.architecture not in BODIES:
            raise unknown(job.shape.architecture)
        habits = job.habits
        self.job, self.layout, self.stage, self.account = job, layout, stage, Account()
        self.tape = tape = (Prefixed if job.adapter is not None and job.adapter.method == "prefix" else Tape)(self.account, habits.stream, job.compute, job.device, habits.fused_norm)
        tape.narrow, tape.second_products = job.weights == "bfloat16", habits.second_products
        tape.gloo = tape.gloo and job.sends
        tape.drops = layout.held > 1 and layout.shard == "full"
        tape.own = job.own_layers and (layout.pipeline == 1 or layout.schedule != "zero_bubble")  # parallel.pipelined.Line
        quantized = bytes_of_codes(job.quantization) if job.quantization else 0.0
        split = Split(layout.tensor, layout.context, layout.expert)
        width = 2.0 if tape.narrow else habits.weights if habits.copies else job.compute
        self.body: Any = BODIES[job.shape.architecture](tape, job.shape, split, width, learning(job), wearing(job), job.adapter, quantized)
        self.body.before = self.before = before_of(self.body, job)
        if not self.before and not any(parameter.learns for parameter in self.body.every()):
            raise ConfigError("adapter: {method} is on no layer that the planner knows, so that nothing learns", "", "see adapter.targets, or leave it out", method=job.adapter.method if job.adapter else "none")
        self.places = self.before.places if self.before else 0  # more than a row's tokens
        depth, count = len(self.body.blocks), layout.pipeline * layout.stages_per_rank
        self.stages = [stage, count - 1 - stage] if layout.turning else list(range(stage, count, layout.pipeline))
        here = [list(range(*share(depth, count, one))) for one in self.stages]
        self.numbers = [number for blocks in here for number in blocks]
        self.runs = here if layout.schedule == "interleaved" else [self.numbers]  # what is passed at a time: of a V both stages, which take turns
        self.last = count - 1 in self.stages
        self.loose = [*self.body.outside(self.numbers), *(self.before.learned.parameters if self.before else [])]
        self.parameters = [*self.loose, *(parameter for number in self.numbers for parameter in self.body.inside[number])]
        self.body.output.used_again = self.last and self.body.looks_up(self.numbers) and self.body.output in self.body.below
        self.modes = self._modes()
        self.held: list[Storage] = []
        self.shards = Shards(tape, layout, habits, self.body.inside, self.loose, self.numbers[0], job.away) if layout.held > 1 else None
        self.moment("weights")
        self._hold()

    def _modes(self) -> list[str]:
        """What each block computes again. A compiled one keeps its products, whatever it is asked (luban.training.engines.choose_recompute)."""
        wanted, count = self.job.recompute, len(self.body.blocks)
        if not isinstance(wanted, str):
            return planned(self.job, self.layout, count)
        return ["selective" if self.job.compile and wanted == "none" else wanted] * count

    def moment(self, name: str) -> None:
        self.account.moment = name

    # ---- what is held all the time --------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Weights and the optimizer's state, in shards where they are; the batch of the whole step."""
        job, layout = self.job, self.layout
        more = 0.0 if job.habits.copies else job.habits.weights - job.compute  # of a weight that is held wider than it is gathered
        weights = sum(parameter.numbers * (parameter.width + (more if parameter.width >= job.compute else 0.0)) / layout.cut(parameter.of_expert) for parameter in self.parameters)
        self.keep(weights if not job.away else 0.0, "weights")
        learning = [parameter for parameter in self.parameters if parameter.learns]
        states = sum(state_bytes(parameter, job, parameter is self.body.embedding) / layout.cut(parameter.of_expert) for parameter in learning)
        self.keep(states if job.state == "memory" and not job.away else 0.0, "optimizer")
        if job.averaged:
            self.keep(sum(4.0 * parameter.numbers for parameter in self.parameters), "optimizer")
        self.keep(BATCH_BYTES * job.step_rows * (job.sequence_length + job.source_length), "temporary")
        if layout.pipeline > 1 and job.habits == Habits():
            self._hold_of_stages(job.rows * job.sequence_length / layout.context)

    def _hold_of_stages(self, tokens: float) -> None:
        """What torch's stages have besides: a place for all that will come to them in a step, from either side; and gradients of what products made, until those of the weights are computed from them."""
        job, layout = self.job, self.layout
        count, depth = layout.pipeline * layout.stages_per_rank, len(self.body.blocks)
        sides = [(share(depth, count, side)[0], {side - 1, side} <= set(self.stages)) for stage in self.stages for side in (stage, stage + 1) if 0 < side < count]
        width = job.shape.hidden_size * job.habits.stream
        self.keep(sum(self._passed(number, tokens) for number, _ in sides) * width * job.micro_batches(layout), "communication")
        if layout.schedule != "1f1b":  # as much is sent, but to itself, and stays until the step's end; what is still on its way is counted by itself
            sent = max(0, job.micro_batches(layout) - -(-(self._ahead + 1) // len(self.runs)))
            self.keep(sum(self._passed(number, tokens) for number, here in sides if not here) * width * sent, "communication")
        if layout.schedule == "zero_bubble":
            # Micro-batches, as measured with two and four processes (benchmarks/planner); the first stage sends nothing back, and computes all at once.
            waiting = max(0.0, self.stage - 0.5) if layout.turning else 1.2 * (self.stage + 0.8) if self.stage else 0.0
            made = sum(parameter.sides[0] for number in self.numbers for parameter in self.body.inside[number] if parameter.sides and parameter.learns)
            self.keep(waiting * tokens * made * job.compute, "temporary")

    def _passed(self, number: int, tokens: float) -> float:
        """States that pass from stage to stage before a block, of a micro-batch of so many tokens."""
        return self.body.passed(number, tokens, self.job.rows * (self.job.source_length or self.job.sequence_length))

    def keep(self, size: float, purpose: str) -> None:
        self.held.append(Storage(self.account, size, purpose))

    # ---- the step -------------------------------------------------------------------------------------------------------

    def run(self) -> Account:
        """All of a step, from the second on: the optimizer's state is there."""
        job = self.job
        if job.engine == "layerwise":
            self.tape.on_gradient = self._use
        done: list[list[tuple[Node | None, Any]]] = [[] for _ in self.runs]
        order = self.order()
        passes = sum(forth for forth, _ in order)
        for forth, run in order:
            if not forth:
                self.backward(*done[run].pop(0), run)
                continue
            passes -= 1
            if self.shards:
                self.shards.last = passes == 0
            done[run].append(self.forward(run))
        self.moment("optimizer step")
        self._reduce_all()
        if job.engine != "layerwise" and not job.away:
            moment = self.tape.storage(moment_bytes([one for one in self.parameters if one.learns], job), 1, "temporary")
            del moment
        return self.account

    @property
    def _ahead(self) -> int:
        """Passes forward before the first one back, see :meth:`order`."""
        after = self.layout.pipeline - 1 - self.stage
        return {"1f1b": after, "interleaved": (len(self.runs) - 1) * self.layout.pipeline + 2 * after, "zero_bubble": self.layout.pipeline - 1}[self.layout.schedule]

    def order(self) -> list[tuple[bool, int]]:
        """The passes of a step, forward (True) or back, and of which of the runs, as torch's schedules have them: first so many forward that all ranks have work, then one of each in turn. Ahead are, of 1F1B, as
        many as there are stages behind; interleaved, more of each run (Narayanan et al. 2021, arXiv:2104.04473); without bubbles, as many as there are ranks wherever it stands, since gradients of weights wait
        (Qi et al. 2023, arXiv:2401.10241). Of a long step the beginning: the last passes find the gradients of the first, and those between are like them."""
        ranks, runs, ahead = self.layout.pipeline, len(self.runs), self._ahead
        micro_batches = 1 if self.job.engine == "layerwise" else self.job.micro_batches(self.layout)
        group = min(micro_batches, ranks) if runs > 1 else 1  # micro-batches that pass a run before the next run's turn
        micro_batches = min(-(-micro_batches // group), -(-(ahead + 2) // (runs * group)) + (runs > 1)) * group
        passes = micro_batches * runs
        ahead = min(ahead, passes - 1)
        forth = [(True, number // group % runs) for number in range(passes)]
        back = [(False, runs - 1 - number // group % runs) for number in range(passes)]
        return forth[:ahead] + [one for pair in zip(forth[ahead:], back, strict=False) for one in pair] + back[passes - ahead :]

    def forward(self, run: int = 0) -> tuple[Node | None, Any]:
        """A micro-batch's loss; what its backward pass begins with. Of a stage that is not the last, the node of what it hands on, and that itself, which torch keeps until its gradient has come."""
        self.moment("forward pass")
        job, body, tape = self.job, self.body, self.tape
        rows, seq = job.rows, job.sequence_length / self.layout.context
        if self.shards:
            self.shards.begin()
        if self.before:
            self.before.begin()
        with_source = job.shape.kind == "encoder_decoder"
        numbers = self.runs[run]
        states = self._pairs(numbers, rows, seq) if with_source else self._stack(numbers, rows, seq)
        if self.shards:
            self.shards.forward_is_done()
        if not self._ends(numbers):
            tape.casts.clear()
            return states.node, states.storage
        if not with_source:
            states = self._selected(body.leave(states), seq / (seq + self.places))
        self.moment("loss")
        node = self._loss(states, rows * seq)
        tape.casts.clear()
        return node, None

    def _arrived(self, tokens: float) -> Value:
        """What the stage before has sent of so many tokens."""
        tape, numbers = self.tape, tokens * self.job.shape.hidden_size / self.layout.tensor
        return Value(tape.storage(numbers, tape.stream), numbers, tape.stream, tape.node(lambda gradient: []))

    def _ends(self, numbers: Sequence[int]) -> bool:
        """Whether these blocks end in the loss."""
        return len(self.body.blocks) - 1 in numbers

    def _stack(self, numbers: Sequence[int], rows: float, seq: float) -> Value:
        body = self.body
        seq += self.places
        self._see(rows, seq)
        states = body.enter(rows, seq) if 0 in numbers else self._arrived(rows * seq)
        for number in numbers:
            block = body.blocks[number]
            states = self._through(number, lambda given, block=block: block(given, rows, seq), states)
        return states

    def _see(self, rows: float, seq: float) -> None:
        """The mask of packed documents, one for all layers (of each window), where attention is not Luban's own: this device's places by all of the row, as the last of a context group has them."""
        job = self.job
        if job.habits == Habits() and (job.device != "cpu" or job.compute < 4 or self.layout.context > 1):
            masks = len(set(getattr(job.shape, "windows", [None])))
            seen = self.tape.storage(rows * seq * seq * self.layout.context, 1)
            self.tape.mask = self.tape.storage(seen.size * masks, job.compute if self.tape.recording else 1)
            del seen

    def _pairs(self, numbers: Sequence[int], rows: float, seq: float) -> Value:
        """An encoder reads the source, a decoder the target and what the encoder made."""
        body, border, length = self.body, len(self.body.encoder), (self.job.source_length or self.job.sequence_length) + self.places
        memory = body.embed(rows * length, 0) if 0 in numbers else self._arrived(rows * length)
        read, written = ([number for number in numbers if (number >= border) == side] for side in (False, True))
        bias = body.bias(0, length) if read else None
        for number in read:
            memory = self._through(number, lambda given, bias, block=body.blocks[number]: block(given, rows, length, bias), memory, bias)
        memory = body.finish(memory, 0) if border - 1 in numbers else memory
        if not written:
            return memory
        states = body.embed(rows * seq, 1) if border in numbers else self._arrived(rows * seq)
        bias = body.bias(1, seq)
        for number in written:
            states = self._through(number, lambda given, bias, memory, block=body.blocks[number]: block(given, rows, seq, bias, memory, length), states, bias, memory)
        return body.finish(states, 1) if self._ends(numbers) else states

    def _through(self, number: int, block: Any, states: Value, *others: Value | None) -> Value:
        """A block in its mode of recompute; of a model in shards with its weights gathered."""
        if self.shards is None:
            return self.tape.through(self.modes[number], block, states, *others)
        return self.shards.through(number, lambda entered: self.tape.through(self.modes[number], block, entered, *others), states)

    def kept_by(self, number: int) -> float:
        """Bytes that a block keeps for the backward pass, the first of its stack."""
        self.moment("forward pass")
        job, body, others = self.job, self.body, ()
        if self.before:
            self.before.begin()
        rows, seq = job.rows, job.sequence_length / self.layout.context
        if job.shape.kind == "encoder_decoder":
            length, decodes = (job.source_length or job.sequence_length) + self.places, number >= len(body.encoder)
            seq = seq if decodes else length
            states, others = body.embed(rows * seq, int(decodes)), (body.bias(int(decodes), seq), *([self._arrived(rows * length), length] if decodes else []))
        else:
            seq += self.places
            self._see(rows, seq)
            states = body.enter(rows, seq)
        before = self.account.total
        made = self.tape.through(self.modes[number], lambda given: body.blocks[number](given, rows, seq, *others), states)
        kept = self.account.total - before
        del made
        return kept

    def _loss(self, hidden: Value, tokens: float) -> Node:
        """luban.objectives.chunks: some tokens at a time, whose gradients are made at once; of a task's head next to nothing."""
        job, tape, output = self.job, self.tape, self.body.output
        if job.head_outputs:
            end, numbers = hidden.node, hidden.numbers
            return tape.node(lambda gradient: [(end, tape.gradient(numbers, tape.stream))])
        if job.scored < 1:
            hidden = self._selected(hidden, job.scored)
            tokens *= job.scored
        vocabulary, width_of_model = job.shape.vocabulary_size / self.layout.tensor, job.shape.hidden_size
        if job.habits.logits != "chunked":
            return self._whole_loss(hidden, tokens, vocabulary)
        hidden = tape.cast(hidden, tape.compute)
        width, end, numbers = hidden.width, hidden.node, hidden.numbers * self.layout.tensor
        by_hidden = tape.storage(numbers, width, "logits")
        if tape.narrow:
            tape.widen(output, width)
        matrix = tape.storage(output.numbers, width, "logits") if width < output.width else None
        by_weight = tape.storage(output.numbers, 4, "logits") if output.learns else None
        chunk = max(CHUNK_TOKENS, (CHUNK_LOGITS if job.device == "cpu" else DEVICE_CHUNK_LOGITS) // job.shape.vocabulary_size)
        in_place = tape.own and width == 4 and self.layout.tensor == 1  # own_layers.cross_entropy
        slope = logits = None
        for _ in range(min(3, -(-int(tokens) // chunk))):
            size = min(chunk, tokens) * vocabulary
            made = tape.storage(size, width, "logits")
            logits = made
            wide = tape.storage(size, 4, "logits") if width < 4 else None
            known = made if in_place else tape.storage(size, 4, "logits")
            slope = tape.storage(size, width, "logits") if width < 4 else known
            del wide, known, made
            weighted = tape.storage(min(chunk, tokens) * width_of_model, width, "logits")
            product = tape.storage(output.numbers, width, "logits") if width < 4 and by_weight else None
            del weighted, product
        del slope, logits, matrix
        held = [by_hidden, by_weight]
        del by_hidden, by_weight

        def rule(gradient: Storage) -> list[Any]:
            of_hidden, of_weight = held
            held.clear()
            if of_weight is not None:
                tape.receive(output, of_weight)
            return [(end, of_hidden)] if end else []

        return tape.node(rule)

    def _whole_loss(self, hidden: Value, tokens: float, vocabulary: float) -> Node:
        """Logits of a whole micro-batch: in the products' type, in float32 (or parts of them), and their gradients."""
        tape, size = self.tape, tokens * vocabulary
        logits = tape.product(hidden, vocabulary, self.body.output, tokens=tokens)
        part = 0.125 if self.job.habits.logits == "split" else 1.0
        held = [tape.storage(size * part, 4, "logits") for _ in range(2)]  # in float32, and the log-probabilities
        end, width = logits.node, logits.width

        def rule(gradient: Storage) -> list[Any]:
            slope = tape.storage(size * part, 4, "logits")
            held.clear()
            return [(end, slope if width == 4 and part == 1 else tape.storage(size, width, "logits"))]

        return tape.node(rule)

    def _selected(self, hidden: Value, part: float) -> Value:
        """A part of the places."""
        if part == 1:
            return hidden
        tape, end, numbers, width = self.tape, hidden.node, hidden.numbers, hidden.width
        return tape.value(numbers * part, width, (lambda gradient: [(end, tape.gradient(numbers, width))]) if hidden.grows else None)

    def backward(self, node: Node | None, handed: Any = None, run: int = 0) -> None:
        self.moment("backward pass")
        if node is not None:
            passed = self._passed(self.runs[run][-1] + 1, self.job.rows * self.job.sequence_length / self.layout.context)
            numbers = 1 if self._ends(self.runs[run]) else passed * self.job.shape.hidden_size / self.layout.tensor
            self.tape.backward(node, self.tape.gradient(numbers, self.tape.stream))
        if self.before:
            self.before.is_done()
        if self.shards:
            self.shards.end()

    def _use(self, parameter: Parameter) -> None:
        """The layer-wise engine: the optimizer steps at once, and the gradient is gone."""
        moment = self.tape.storage(moment_bytes([parameter], self.job), 1, "temporary")
        state = self.tape.storage(state_bytes(parameter, self.job) if self.job.state == "disk" else 0.0, 1, "optimizer")
        del moment, state
        parameter.gradient = None

    # ---- ranks ----------------------------------------------------------------------------------------------------------

    def _reduce_all(self) -> None:
        """Gradients of replicas are summed in the last backward pass, some of them at once, in copies (parallel.sums)."""
        if self.layout.replicas > 1 and self.shards is None:
            size = sum(parameter.gradient.size for parameter in self.parameters if parameter.gradient is not None)
            flat = self.tape.storage(min(IN_FLIGHT, size / self.job.habits.gradients * self.job.habits.reduced), 1, "communication")
            del flat


def share(count: int, parts: int, number: int) -> tuple[int, int]:
    """The first and the one after the last of ``count`` things that part ``number`` has."""
    return count * number // parts, count * (number + 1) // parts


def planned(job: Job, layout: Layout, blocks: int) -> list[str]:
    """The modes of a budget in bytes."""
    steps = {mode: Step(replace(job, recompute=mode), replace(layout, pipeline=1)) for mode in MODES}
    border = len(steps["none"].body.encoder) if job.shape.kind == "encoder_decoder" else blocks  # up to there blocks are taken to be alike, and behind it
    kinds = [{mode: step.kept_by(number) for mode, step in steps.items()} for number in sorted({0, border % blocks})]
    return plan([kinds[number >= border] for number in range(blocks)], int(job.recompute))

"""The rows of the ledger: one frozen fact each, as JSON text; what was sealed is exactly these bytes.

Written through ``scheduler.accounting.journal``, read by everybody who verifies, recovers or reports. Pure. It must
never hold a prompt, an answer or a key; of texts it has salted digests, made beside the engine.

Units end names. ``at_us`` is UTC in unix microseconds and never goes back in one ledger. Fields with their default are
left out of the text. ``docs/measurement.md`` says of every amount what it is.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import msgspec

from scheduler.accounting.outcomes import Outcome, Tally
from scheduler.core.actions import Payer
from scheduler.core.request import FREE, Rates, SpecialTokens
from workers.types import Grade, WindowRecord
from workers.types import Outcome as Ending

OPERATOR = "(operator)"
"""The account of the house itself: repeated and failed work. No tenant can have this name: brackets are not allowed."""

BY_OPERATOR = Payer.OPERATOR
"""Python 3.11 takes a while to find a member of an enum, and every charge is asked."""

HELD_FACTS = ("tenant", "project", "key_id", "task", "model", "tier", "data_class", "arrived_us", "rates")
"""What a hold and its request's charges have in common."""

Leg = tuple[str, str, int]
"""Account, unit, amount. The legs of a row sum to 0 in each unit."""


Amount = Annotated[int, msgspec.Meta(ge=0)]
"""Never below 0: a text that says so is no row."""


class Row(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", gc=False):
    """What all rows have. ``seq`` and ``at_us`` are given by the journal, once; nothing changes afterwards."""

    seq: int = -1
    at_us: int = 0
    legs: list[Leg] = []

    @property
    def row_id(self) -> str:
        """Unique among the rows of its kind: what makes booking it idempotent."""
        raise NotImplementedError

    @property
    def indexed(self) -> dict[str, str | int] | None:
        """Where it is looked up beside its id; None = nowhere."""
        return None

    @property
    def kind(self) -> str:
        """Its word in the text."""
        return str(self.__struct_config__.tag)


class Genesis(Row, tag="genesis", kw_only=True):
    """The first row: which ledger this is, and whose signature its checkpoints have."""

    ledger_id: str
    origin: str
    public_key: str
    statement: str
    """Version of the measurement statement."""

    @property
    def row_id(self) -> str:
        return self.ledger_id


class Opened(Row, tag="opened", kw_only=True):
    """A control plane took the ledger. Whoever had an earlier epoch cannot write any more."""

    epoch: int
    version: str
    """Of the software."""
    statement: str

    @property
    def row_id(self) -> str:
        return str(self.epoch)


class Hold(Row, tag="hold", kw_only=True):
    """A request may begin: the worst case is held, at the rates that it will pay whatever happens to prices."""

    request_id: str
    tenant: str
    project: str = ""
    key_id: str = ""
    task: str = ""
    model: str
    tier: str = "default"
    data_class: str = "general"
    zones: list[str] | None = None
    """Where it may run; None = wherever its data class may."""
    arrived_us: int
    """Decides its budget windows and its price."""
    input_tokens: Amount
    output_tokens: Amount
    """Held, over all sequences."""
    cost_nano: Amount = 0
    """Held."""
    rates: Rates = FREE
    """Pinned at admission, with the version of the price book that they are from."""

    @property
    def row_id(self) -> str:
        return self.request_id


class Void(Row, tag="void", kw_only=True):
    """A hold that nothing was charged on is given back."""

    request_id: str
    tenant: str
    cause: str

    @property
    def row_id(self) -> str:
        return self.request_id


class Charge(Row, tag="charge", kw_only=True):
    """Tokens of one attempt. Times are the worker machine's monotonic seconds; energy is provisional until posted."""

    request_id: str
    attempt_id: str
    attempt_number: int = 1
    """0: it was begun under an earlier control plane."""
    tenant: str
    """Whose request it was; who pays is ``payer``."""
    project: str = ""
    key_id: str = ""
    task: str = ""
    model: str
    tier: str = "default"
    data_class: str = "general"
    decision: str = ""
    """Why its worker was chosen, in one line."""
    worker_id: str
    zone: str = ""
    payer: Payer = Payer.REQUEST
    outcome: Ending
    cause: str = ""
    arrived_us: int = 0
    input_tokens: Amount
    """Each prompt once, cached tokens included."""
    cached_tokens: Amount
    output_tokens: Amount
    reasoning_tokens: Amount = 0
    """Part of the output."""
    image_tokens: Amount = 0
    audio_tokens: Amount = 0
    """Parts of the input."""
    input_bytes: Amount = 0
    output_bytes: Amount = 0
    """UTF-8 of the texts."""
    cost_nano: Amount = 0
    """Money by the rates that were pinned at admission, in 10⁻⁹ units; what the operator pays for costs nobody."""
    rates: Rates = FREE
    """Those rates, with the price version that they are from."""
    plus_nano: Amount = 0
    """Of ``cost_nano``: for energy and GPU-time as they were estimated (cost-plus)."""
    most_plus_nano: Amount | None = None
    """The most that these may cost it, measured or not; None: nothing was held for it."""
    provisional_mj: int = 0
    provisional_gpu_us: int = 0
    grade: Grade = Grade.D
    """Of the worker's meter at the time of the charge."""
    is_exact: bool = True
    """False: taken from the last progress, the worker could not say any more."""
    token_difference: int = 0
    inexact_sequences: int = 0
    scheduled_tokens: int | None = None
    """What the engine scheduled for it; None where not every sequence was counted on both sides."""
    computed_prompt_tokens: int = 0
    num_generating: int = 0
    """Positions of prompts that were computed, and sequences that put out anything (the last token of each is never
    scheduled): what leads from billed to scheduled tokens.
    """
    recomputed_tokens: int = 0
    rejected_tokens: int = 0
    overrun_tokens: int = 0
    """Computed and never billed: after a preemption, of drafts, past the end."""
    started_s: float = 0.0
    first_byte_s: float | None = None
    ended_s: float = 0.0
    tokenizer: str = ""
    """Digest of the tokenizer that counted."""
    salt: str = ""
    input_digest: str = ""
    output_digests: list[str] = []
    """Salted SHA-256 of the input and of each choice's whole text."""

    @property
    def row_id(self) -> str:
        return self.attempt_id

    @property
    def account(self) -> str:
        """Name of the account that pays."""
        return OPERATOR if self.payer is BY_OPERATOR else self.tenant

    @property
    def special(self) -> SpecialTokens | None:
        """Those of its tokens that may have a price of their own."""
        return SpecialTokens.of(
            self.input_tokens - self.cached_tokens,
            reasoning=self.reasoning_tokens,
            image=self.image_tokens,
            audio=self.audio_tokens,
        )

    def difference_nano(self, *, energy_mj: int, gpu_us: int) -> int:
        """What is posted once, when its energy is measured: cost-plus by the measurement less what was charged by the
        estimate; negative where less was taken, never more than was held, 0 where it pays for tokens only.
        """
        if self.payer is Payer.OPERATOR:
            return 0
        cost_nano = self.rates.cost_plus_nano(energy_mj=energy_mj, gpu_us=gpu_us, most_nano=self.most_plus_nano)
        return cost_nano - self.plus_nano


class Energy(Row, tag="energy", kw_only=True):
    """What was measured of an attempt: in flight -> whoever pays. The receipt is final with it."""

    attempt_id: str
    account: str
    worker_id: str
    energy_mj: Amount
    gpu_us: Amount
    carbon_ug: Amount = 0
    grade: Grade
    policy: str
    complete: bool = True
    """False: a window of this attempt was lost, its energy is in unattributed."""
    posted_mj: int | None = None
    posted_gpu_us: int | None = None
    """What the worker said, where that is not what its windows had put in flight."""
    computed_tokens: int | None = None
    """Tokens of the steps that this energy was split by; None = not counted."""
    token_difference: int = 0
    """Tokens that the engine scheduled beyond those: steps that never reached the meter's side."""
    budget_mj: int | None = None
    budget_gpu_us: int | None = None
    budget_ug: int | None = None
    """What its budgets were asked to carry, where a hold was smaller than the truth: the rest is the operator's."""
    cost_nano: int = 0
    """Cost-plus: the one difference between what was charged by estimate and what was measured."""
    currency: str = "USD"

    @property
    def row_id(self) -> str:
        return self.attempt_id


class Window(Row, tag="window", kw_only=True):
    """One metered window of one worker: meter -> idle, overhead, unattributed, in flight."""

    worker_id: str
    incarnation: str
    """The worker's process."""
    number: int
    """Of its outbox: every record up to it was booked."""
    window: WindowRecord
    carbon_ug: int = 0

    @property
    def row_id(self) -> str:
        return f"{self.worker_id}/{self.incarnation}/{self.number}"


class Judged(Row, tag="outcome", kw_only=True):
    """Whether what a request or task brought was accepted. A later one of the same subject replaces it."""

    outcome: Outcome
    change: Tally
    """Of the usage where it counts."""

    @property
    def row_id(self) -> str:
        return self.outcome.outcome_id

    @property
    def indexed(self) -> dict[str, str | int] | None:
        outcome, verdict = self.outcome, self.outcome.verdict
        return {
            "subject": subject_of(outcome.facts.tenant, verdict.request_id, verdict.task),
            "number": outcome.number,
            "outcome_id": outcome.outcome_id,
        }


class Prices(Row, tag="prices", kw_only=True):
    """A version of the price book came into the house: its whole text, so that it can be read here for ever."""

    version: str
    text: str

    @property
    def row_id(self) -> str:
        return self.version


class Changed(Row, tag="change", kw_only=True):
    """Who changed what about tenants, keys, budgets or rules, or was denied. Never a secret."""

    change_id: str
    fields: dict[str, Any]
    """As ``changes.Change.fields`` has them."""

    @property
    def row_id(self) -> str:
        return self.change_id


class Correction(Row, tag="correction", kw_only=True):
    """What was booked wrong is put right by legs of its own; the wrong row stays."""

    correction_id: str
    of_seq: int
    reason: str
    actor: str

    @property
    def row_id(self) -> str:
        return self.correction_id


class Daily(Row, tag="daily", kw_only=True):
    """The rows from ``from_seq`` up to ``to_seq`` are compacted: their texts may go, their leaf hashes stay.

    ``legs`` are the net movement of all of them, and are not a movement of their own.
    """

    from_seq: int
    to_seq: int
    day: str
    num_rows: int

    @property
    def row_id(self) -> str:
        return str(self.from_seq)


AnyRow = Genesis | Opened | Hold | Void | Charge | Energy | Window | Judged | Prices | Changed | Correction | Daily

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(AnyRow).decode
DECODERS = {str(each.__struct_config__.tag): msgspec.json.Decoder(each) for each in get_args(AnyRow)}
"""By the word of a kind: who knows it already need not ask the text."""


def subject_of(tenant: str, request_id: str | None, task: str | None) -> str:
    """What was judged, as one word: only a task may hold a slash, and it is last."""
    return f"{tenant}/{request_id or ''}/{task or ''}"


def request_id_of(attempt_id: str) -> str:
    """``req-abc-2`` -> ``req-abc``."""
    return attempt_id.rpartition("-")[0]

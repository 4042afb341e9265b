"""Real vLLM in a worker: answers, aborts, tokens on both sides, joules; no prompt leaves by another way."""

import hashlib
import json
import logging
import os
import time

import pytest

from benchmarks.token_identity import NUM_ROUNDS, offer_all
from benchmarks.worker_run import Reply, WorkerRun
from workers.balance import check_balance
from workers.types import Grade, Outcome, WorkerState

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CANARY = "zebrafinch-canary-8817"


def sequence_tokens(reply: Reply) -> list[tuple[int, int, int]]:
    """(prompt, cached, generated) of each engine request."""
    assert reply.usage is not None
    return [(s.prompt_tokens, s.cached_tokens, s.generated_tokens) for s in reply.usage.sequences]


def texts_of(reply: Reply) -> list[str]:
    """Each choice's text as a client puts it together, whole or from its stream."""
    texts: dict[int, str] = {}
    for answer in reply.events or [json.loads(reply.body)]:
        for choice in answer["choices"]:
            said = choice.get("delta") or choice.get("message") or {}
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice.get("text") or said.get("content") or "")
    return [texts[index] for index in sorted(texts)]


def digest_of(reply: Reply, text: str) -> str:
    """As whoever holds the receipt computes it."""
    assert reply.usage is not None
    return hashlib.sha256(bytes.fromhex(reply.usage.salt) + text.encode()).hexdigest()


def test_the_engine_says_what_it_is(run: WorkerRun) -> None:
    """Version, room, exact steps, a tokenizer's digest, and a process of its own to meter."""
    assert run.status is not None
    assert run.status.state is WorkerState.READY
    info = run.status.info
    assert info is not None
    assert info.version.startswith("0.32.")
    assert (1024, 36 * 32, 32, 1) == (info.max_model_len_tokens, info.kv_tokens, info.max_sequences, info.num_gpus)
    assert Grade.A is info.hook_grade
    assert info.tokenizer_digest.startswith("sha256:")
    assert all(os.path.exists(f"/proc/{pid}") and pid != os.getpid() for pid in info.pids)
    assert () == info.notes


def test_a_whole_answer_and_its_charge_agree(run: WorkerRun) -> None:
    """What vLLM tells the client is what both sides counted."""
    reply = run.call("whole", "/v1/completions", prompt="The capital of France is", max_tokens=5, temperature=0)
    run.wait_ended("whole")
    assert reply.usage is not None
    answer = json.loads(reply.body)
    assert answer["choices"][0]["text"].startswith(" Paris")
    assert (200, Outcome.COMPLETED) == (reply.status, reply.usage.outcome)
    told = answer["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == (reply.usage.input_tokens, reply.usage.output_tokens)
    assert [(5, 0, 5)] == sequence_tokens(reply)


def test_a_stream_arrives_step_by_step(run: WorkerRun) -> None:
    """Tokens leave as they are made; the last chunk's usage is the charge; progress came meanwhile."""
    reply = run.call(
        "stream", CHAT, messages=QUESTION, max_tokens=40, stream=True, ignore_eos=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    run.wait_ended("stream")
    assert reply.num_chunks > 20
    assert reply.body.endswith(b"data: [DONE]\n\n")
    told = reply.events[-1]["usage"]
    assert reply.usage is not None
    assert (told["prompt_tokens"], told["completion_tokens"]) == (reply.usage.input_tokens, reply.usage.output_tokens)
    assert 40 == reply.usage.output_tokens
    assert reply.progress
    assert reply.usage.first_byte_s is not None
    assert reply.usage.started_s < reply.usage.first_byte_s < reply.usage.ended_s


def test_children_share_their_prompt_and_lists_do_not(run: WorkerRun) -> None:
    """n = 2 is billed one prompt, a list of two is billed two."""
    children = run.call("children", prompt="One two three", n=2, max_tokens=6, ignore_eos=True)
    several = run.call("several", prompt=["One two three", "Four"], max_tokens=6, ignore_eos=True)
    run.wait_ended("children", "several")
    assert children.usage is not None
    assert several.usage is not None
    assert [0, 0] == [sequence.prompt_index for sequence in children.usage.sequences]
    assert [0, 1] == sorted(sequence.prompt_index for sequence in several.usage.sequences)
    assert (children.usage.sequences[0].prompt_tokens, 12) == (
        children.usage.input_tokens,
        children.usage.output_tokens,
    )
    assert sum(s.prompt_tokens for s in several.usage.sequences) == several.usage.input_tokens


def test_a_known_prefix_is_cached(run: WorkerRun) -> None:
    """The second of two equal prompts computes only what is new, and says so to client and ledger."""
    prompt = "lamp " * 150 + CANARY
    run.call("first", prompt=prompt, max_tokens=2)
    run.wait_ended("first")
    second = run.call("second", prompt=prompt, max_tokens=2)
    run.wait_ended("second")
    assert second.usage is not None
    assert second.usage.cached_tokens >= 96
    assert second.usage.cached_tokens % 32 == 0
    assert json.loads(second.body)["usage"]["prompt_tokens_details"]["cached_tokens"] == second.usage.cached_tokens


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_engine(run: WorkerRun, stream: bool) -> None:
    """A disconnect aborts streams and whole answers at once; what was computed is charged, no more."""
    name = f"leaves-{stream}"
    reply = run.call(name, prompt="Once", max_tokens=900, ignore_eos=True, stream=stream)
    run.wait(lambda: any(p.output_tokens > 2 for p in reply.progress), what="some tokens")
    left_s = time.monotonic()
    run.abort(name)
    run.wait_ended(name, timeout_s=10)
    assert time.monotonic() - left_s < 4
    assert reply.usage is not None
    assert (Outcome.ABORTED, "client_gone") == (reply.usage.outcome, reply.usage.cause)
    assert 2 < reply.usage.output_tokens < 300
    assert [True] == [sequence.exact for sequence in reply.usage.sequences]
    run.wait(lambda: run.status is not None and run.status.num_running == 0, what="an idle engine")


def test_a_client_can_compute_every_digest_again(run: WorkerRun) -> None:
    """From nothing but its texts and the salt: n = 2, two prompts, a stop string, streams, whole answers, an abort."""
    prompts = ["One two three", "Größe: äöü"]
    run.call("digest-n2", CHAT, messages=QUESTION, n=2, max_tokens=12, stream=True, temperature=1.5)
    run.call("digest-whole", prompt=prompts, n=2, max_tokens=8, ignore_eos=True, temperature=1.5)
    run.call("digest-list", prompt=prompts, n=2, max_tokens=8, ignore_eos=True, temperature=1.5, stream=True)
    run.call("digest-stop", prompt="Count: 1 2 3 4 5", stop=["8", "\n"], max_tokens=40, temperature=0, stream=True)
    gone = run.call("digest-gone", prompt="Once", stop=["zzzzzzzz"], max_tokens=900, ignore_eos=True, stream=True)
    names = ("digest-n2", "digest-whole", "digest-list", "digest-stop", "digest-gone")
    run.wait(lambda: gone.num_chunks > 5, what="some text")
    run.abort("digest-gone", "deadline")
    run.wait_ended(*names)
    for name, num_choices in zip(names, (2, 4, 4, 1, 1), strict=True):
        reply = run.replies[name]
        usage, texts = reply.usage, texts_of(reply)
        assert usage is not None
        assert num_choices == len(texts), name
        assert [digest_of(reply, text) for text in texts] == list(usage.output_digests), name
        assert sum(len(text.encode()) for text in texts) == usage.output_bytes, name
    assert 5 == len({run.replies[name].usage.salt for name in names})  # type: ignore[union-attr]
    assert "8" not in texts_of(run.replies["digest-stop"])[0]
    whole, asked = run.replies["digest-whole"], json.dumps(prompts, separators=(",", ":"), ensure_ascii=False)
    assert whole.usage is not None
    assert (digest_of(whole, asked), 13 + 15) == (whole.usage.input_digest, whole.usage.input_bytes)


def test_a_seed_and_a_prompt_in_parts_do_not_end_the_engine(run: WorkerRun) -> None:
    """vLLM's CPU build died of the two together: beside another request 600 tokens are computed in two parts."""
    beside = run.call("beside", prompt="Once", max_tokens=400, ignore_eos=True, stream=True)
    run.wait(lambda: beside.num_chunks > 2, what="some text")
    reply = run.call("seeded", prompt="lamp " * 600, seed=4, temperature=1.0, max_tokens=6, ignore_eos=True)
    run.wait_ended("seeded")
    run.abort("beside")
    run.wait_ended("beside")
    assert reply.usage is not None
    assert (Outcome.COMPLETED, 6) == (reply.usage.outcome, reply.usage.output_tokens)
    assert Outcome.ABORTED is beside.usage.outcome  # type: ignore[union-attr]


def test_other_routes_are_metered_too(run: WorkerRun) -> None:
    """/v1/responses makes up its own ids, and still its tokens find their attempt."""
    reply = run.call("responses", "/v1/responses", input="Say hello", max_output_tokens=8)
    run.wait_ended("responses")
    assert reply.usage is not None
    assert json.loads(reply.body)["usage"]["output_tokens"] == reply.usage.output_tokens == 8


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"prompt": CANARY, "max_tokens": -1}, "max_tokens"),
        ({"prompt": CANARY + " word" * 3000, "max_tokens": 5}, "1024"),
        ({"prompt": CANARY, "temperature": "hot"}, "temperature"),
        ({"prompt": CANARY, "model": "another"}, "another"),
    ],
)
def test_what_vllm_refuses_costs_nothing(run: WorkerRun, body: dict[str, object], word: str) -> None:
    """vLLM's own words, status 4xx, no sequence, no energy."""
    name = f"refused-{word}"
    reply = run.call(name, **body)
    run.wait_ended(name)
    assert reply.usage is not None
    assert reply.status in (400, 404)
    assert word in reply.body.decode()
    assert (Outcome.REFUSED, (), 0) == (reply.usage.outcome, reply.usage.sequences, reply.usage.provisional_mj)


def test_the_token_identity_holds_over_every_kind_of_request(run: WorkerRun) -> None:
    """At least 200 requests: lists, n = 2, prefix hits, stop strings, aborts, preemption; difference 0 in each."""
    values = offer_all(run, seed=11, num_rounds=NUM_ROUNDS)
    assert values["requests"] >= 200
    assert (0, 0, 0) == (values["token_difference"], values["not_exact"], values["failed"])
    assert values["engine_requests_recomputed_after_preemption"] >= 5
    assert values["engine_requests_with_cached_prefix"] >= 5
    assert values["engine_requests_with_overrun"] >= 5
    assert values["aborted_before_the_first_token"] >= 1


def test_every_millijoule_of_the_meter_is_booked(run: WorkerRun) -> None:
    """Meter = requests + idle + overhead + unattributed in every window; every attempt is posted once."""
    run.wait_posted()
    balance = check_balance(run.windows, run.postings, run.usages, is_live=True)
    assert 0 == balance.difference_mj
    assert [] == [problem for problem in balance.problems if "attempts" in problem]
    assert len(run.windows) > 5
    assert {"modelled:cpu-seconds"} == {window.meter for window in run.windows}
    assert balance.requests_mj > 0


def test_no_prompt_is_logged(
    run: WorkerRun, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by us nor by vLLM, in no process, on no path: answered, refused, aborted, failed."""
    caplog.set_level(logging.DEBUG)
    run.call("canary", prompt=f"{CANARY} one", max_tokens=3)
    run.call("canary-bad", CHAT, messages=[{"role": CANARY, "content": CANARY}], max_tokens=-3)
    run.call("canary-gone", prompt=f"{CANARY} two", max_tokens=800, ignore_eos=True, stream=True)
    run.call("canary-broken", CHAT, messages=f"{CANARY}")
    change = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": CANARY}}
    run.call("canary-quoted", "/v1/messages", messages=[{"role": "system", "content": [change]}], max_tokens=3)
    time.sleep(0.5)
    run.abort("canary-gone")
    run.wait_ended("canary", "canary-bad", "canary-gone", "canary-broken", "canary-quoted")
    time.sleep(0.2)
    printed = capfd.readouterr()
    assert CANARY not in printed.out + printed.err + caplog.text
    assert CANARY not in repr(run.records)
    assert CANARY not in " ".join(run.worker._engine._tail.last_lines)

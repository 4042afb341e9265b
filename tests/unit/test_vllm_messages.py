"""What the hook sends: whole after the journey, small, without names."""

from workers.engines.vllm_messages import EndedRow, Joined, Newcomer, StepMessage, Tokens, decode, encode


def test_a_message_arrives_as_it_left() -> None:
    """Every field, also those at their default."""
    message = StepMessage(
        number=7, scheduled_s=1.5, done_s=1.6, num_running=2, num_waiting=1, kv_used_ratio=0.25, is_whole=True,
        newcomers=[Newcomer(0, "chatcmpl-x", 12)], joined=[Joined(0, 3)], left=[4], tokens=[Tokens(0, 9)],
        rejected=[Tokens(1, 2)], overrun=[Tokens(2, 1)],
        ended=[EndedRow(4), EndedRow(5, is_stopped=True, output_tokens=3, computed=8)],
    )  # fmt: skip
    assert message == decode(encode(message))
    assert None is decode(encode(message)).ended[0].computed


def test_a_steady_step_is_small() -> None:
    """Numbers and times only."""
    message = StepMessage(number=100_000, scheduled_s=12345.678, done_s=12345.7, num_running=256, kv_used_ratio=0.5)
    assert len(encode(message)) < 50

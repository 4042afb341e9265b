"""The table of metrics is fit to be read: kinds that exist, labels without doubles, a sentence for each."""

from scheduler.metric_table import METRIC_HELP


def test_every_metric_is_described_in_a_sentence() -> None:
    """On one line of a table: no bar, no line break."""
    for name, info in METRIC_HELP.items():
        assert info.kind in ("counter", "gauge", "histogram"), name
        assert len(set(info.labels)) == len(info.labels), name
        assert info.help.endswith("."), name
        assert info.help[0].isupper() or info.help[0] in "(1|", name
        assert not set("\n") & set(info.help), name

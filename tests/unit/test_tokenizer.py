"""A tokenizer's digest changes with every byte that decides about tokens, and with nothing else."""

from pathlib import Path

from workers.engines.tokenizer import tokenizer_digest


def test_the_digest_follows_the_tokenizer_files_alone(tmp_path: Path) -> None:
    """Same files, same digest; weights do not count; a changed chat template does."""
    (tmp_path / "tokenizer.json").write_text("{}")
    first = tokenizer_digest(tmp_path)
    (tmp_path / "model.safetensors").write_text("weights")
    assert first == tokenizer_digest(tmp_path)
    assert first.startswith("sha256:")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert first != tokenizer_digest(tmp_path)


def test_bytes_do_not_slip_from_one_file_into_the_next(tmp_path: Path) -> None:
    """The border between two files is part of the digest."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, vocab, merges in ((one, "ab", "c"), (two, "a", "bc")):
        folder.mkdir()
        (folder / "vocab.json").write_text(vocab)
        (folder / "merges.txt").write_text(merges)
    assert tokenizer_digest(one) != tokenizer_digest(two)


def test_no_tokenizer_has_no_digest(tmp_path: Path) -> None:
    """An empty folder is not the tokenizer of nothing."""
    assert tokenizer_digest(tmp_path) == ""

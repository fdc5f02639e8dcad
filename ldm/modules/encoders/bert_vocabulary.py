"""BERT's WordPiece tokenizer from a vocabulary that the user names: no package that we depend on ships its 30,522 lines."""
from __future__ import annotations

from pathlib import Path

from transformers import BertTokenizer

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY_FILE = "vocab.txt"
HOW_TO_GET_IT = (
    "Set vocabulary (in a yaml: cond_stage_config.params.vocabulary) to the file vocab.txt of bert-base-uncased, one token a line, "
    "or to the folder that holds it"
)


def bert_tokenizer(vocabulary: str | Path | None) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer; the id of a token is the number of its line, counted from 0.

    vocabulary: a text file, one token a line, or a folder with `vocab.txt`. Raises ValueError where none is given or where the file is no
    BERT vocabulary, FileNotFoundError where there is nothing at that path.
    """
    if vocabulary is None:
        raise ValueError(f"BERTTokenizer: no vocabulary given, and none is shipped. {HOW_TO_GET_IT}.")
    path = Path(vocabulary).expanduser()
    if path.is_dir():
        path = path / VOCABULARY_FILE
    if not path.is_file():
        raise FileNotFoundError(f"BERTTokenizer: vocabulary: no file {path} (looked from {Path.cwd()}). {HOW_TO_GET_IT}.")
    try:
        tokens = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"BERTTokenizer: vocabulary: {path} is no text file ({error}). {HOW_TO_GET_IT}.") from error
    missing = [mark for mark in MARKS if mark not in tokens]
    if missing:
        raise ValueError(f"BERTTokenizer: vocabulary: {path} ({len(tokens)} lines) has no line {', '.join(missing)}: not a BERT vocabulary. {HOW_TO_GET_IT}.")
    return BertTokenizer(vocab={token: line for line, token in enumerate(tokens)}, do_lower_case=True)

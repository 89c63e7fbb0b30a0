"""Checkpoints come back as they were saved, and nothing in a hostile one ever runs."""

import builtins
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from torch_writer import (
    MAGIC,
    STORAGE_NAMES,
    SYSTEM,
    WRITERS,
    Call,
    OldTensor,
    Parameter,
    Size,
    Storage,
    Tensor,
    legacy_bytes,
    tensor,
    zip_bytes,
)

from wasserstein_adv.errors import InputError
from wasserstein_adv.models import read_torch_checkpoint

both_formats = pytest.mark.parametrize("written", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def read(tmp_path):
    """Returns a function that reads a checkpoint from bytes."""

    def from_bytes(data: bytes):
        (tmp_path / "checkpoint.pth").write_bytes(data)
        return read_torch_checkpoint(tmp_path / "checkpoint.pth")

    return from_bytes


@pytest.fixture
def sentinel(tmp_path):
    return tmp_path / "executed"


@pytest.fixture
def refused(tmp_path, sentinel):
    """Returns a function that asserts that bytes are refused in one line, which it returns."""

    def message(data: bytes) -> str:
        path = tmp_path / "hostile.pth"
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            read_torch_checkpoint(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        assert len(text) < len(str(path)) + 300
        assert not sentinel.exists()
        return text.removeprefix(f"{path}: ")

    return message


def small_checkpoint():
    rng = np.random.default_rng(0)
    state = OrderedDict(
        weight=tensor(rng.normal(size=(3, 4)).astype(np.float32), "10"),
        bias=Parameter(tensor(np.arange(3.0), "11")),
    )
    state._metadata = OrderedDict({"": {"version": 1}})
    return {"state_dict": [state], "epoch": 7, "note": ("ε", b"raw", None, True, 1.5, -(2**70))}


# What was saved comes back ------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_comes_back(read, written, protocol):
    rng = np.random.default_rng(0)
    saved = small_checkpoint()
    if protocol == 2:  # which writes bytes as a call of _codecs.encode
        saved["note"] = ("ε", None, True, 1.5, -(2**70))
    loaded = read(written(saved, protocol))
    state = loaded["state_dict"][0]
    assert type(state) is OrderedDict
    assert list(state) == ["weight", "bias"]
    assert state._metadata == OrderedDict({"": {"version": 1}})
    assert state["weight"].dtype == np.float32
    np.testing.assert_array_equal(state["weight"], rng.normal(size=(3, 4)).astype(np.float32))
    np.testing.assert_array_equal(state["bias"], np.arange(3.0))
    assert (loaded["epoch"], loaded["note"]) == (7, saved["note"])


@both_formats
@pytest.mark.parametrize("dtype", STORAGE_NAMES)
def test_every_element_type_comes_back(read, written, dtype):
    values = np.array([[0, 1, 2], [100, 0, 7]]).astype(dtype)
    loaded = read(
        written([tensor(values, "0"), tensor(values[:0], "1"), tensor(values[0, 1], "2")])
    )
    for array, expected in zip(loaded, [values, values[:0], values[0, 1]], strict=True):
        assert array.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(array, expected)
        assert array.shape == expected.shape


@both_formats
def test_booleans_are_true_or_false_whatever_their_bytes(read, written):
    loaded = read(written(tensor(np.array([0, 1, 2, 255], np.uint8).view(bool), "0")))
    np.testing.assert_array_equal(loaded.view(np.uint8), [0, 1, 1, 1])


@both_formats
def test_strided_tensors_view_their_storage(read, written):
    storage = Storage(np.arange(24, dtype=np.float32), "0")
    cube = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    saved = [
        Tensor(storage, 0, (4, 3, 2), (1, 4, 12)),  # transposed
        Tensor(storage, 5, (2, 2), (12, 2)),  # sliced
        OldTensor(storage, 3, (2, 5), (4, 0)),  # expanded
        Tensor(storage, 0, (10**12,), (0,)),  # expanded beyond any memory
    ]
    transposed, sliced, expanded, vast = read(written(saved))
    np.testing.assert_array_equal(transposed, cube.transpose(2, 1, 0))
    np.testing.assert_array_equal(sliced, cube[:, 1, 1::2])
    np.testing.assert_array_equal(expanded, [[3] * 5, [7] * 5])
    assert vast.shape == (10**12,)
    assert np.shares_memory(transposed, sliced)
    with pytest.raises(ValueError, match="read-only"):
        expanded[0, 0] = 1


def test_a_part_of_a_storage_is_admitted_in_the_stream(read, refused):
    elements = np.arange(6, dtype=np.int32)
    part = Tensor(Storage(elements, "0", part=("1", 2, 3)), 1, (2,), (1,))
    np.testing.assert_array_equal(read(legacy_bytes(part)), [3, 4])
    beyond = Tensor(Storage(elements, "0", part=("1", 2, 5)), 1, (2,), (1,))
    assert "part of a storage" in refused(legacy_bytes(beyond))


def test_sizes_and_types_become_plain(read):
    body = b"\x80\x02ctorch\nfloat16\n."
    assert read(zip_bytes(None, body=body)) == np.dtype(np.float16)
    assert read(zip_bytes(Size((2, 3)))) == (2, 3)


def test_ordered_dicts_of_python_2_come_back(read):
    body = b"\x80\x02ccollections\nOrderedDict\n](](U\x01bK\x01e](U\x01aK\x02ee\x85R."
    assert list(read(legacy_bytes(None, body=body)).items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("order", ["little", "big", None])
def test_the_archives_byte_order_and_folder_vary(read, order):
    values = np.array([1.5, -2.0])
    loaded = read(zip_bytes(tensor(values, "0"), folder="mnist_vanilla", order=order))
    np.testing.assert_array_equal(loaded, values)


def test_bytes_after_the_stream_are_ignored(read):
    assert read(legacy_bytes([1, 2]) + b"more") == [1, 2]


# Files that are not checkpoints -------------------------------------------------------------------


def test_paths_that_are_no_files_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, problem in [
        ("absent.pth", "no such file"),
        ("", "not a file"),
        ("pipe", "not a file"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(InputError, match=problem) as caught:
            read_torch_checkpoint(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n" + bytes(50), b"some text\n", bytes(100), pickle.dumps({"a": 1}), b"\x80"],
    ids=["png", "text", "zeros", "pickle", "byte"],
)
def test_other_files_are_told_apart(refused, data):
    assert "not a PyTorch checkpoint" in refused(data)


def test_an_empty_file_is_told_apart(refused):
    assert refused(b"") == "the file is empty"


def test_a_zip_archive_of_something_else_is_told_apart(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no one data.pkl" in refused((tmp_path / "other.zip").read_bytes())


@both_formats
def test_every_truncation_is_refused(refused, written):
    data = written(small_checkpoint(), protocol=4)
    for length in range(len(data)):
        refused(data[:length])


@both_formats
def test_damaged_bytes_never_raise_anything_else(tmp_path, written):
    data = np.frombuffer(written(small_checkpoint(), protocol=4), np.uint8)
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.pth"
    refusals = 0
    for _ in range(1500):
        damaged = data.copy()
        damaged[rng.integers(len(data), size=rng.integers(1, 4))] = rng.integers(256)
        path.write_bytes(damaged.tobytes())
        try:
            read_torch_checkpoint(path)
        except InputError as error:
            assert "\n" not in str(error)
            refusals += 1
    assert 300 < refusals < 1500


# Tensors that do not fit their storages -----------------------------------------------------------


@both_formats
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (7,), (1,)), (1, (6,), (1,)), (6, (), ()), (0, (2, 2), (1, 5)), (2**80, (1,), (1,))],
)
def test_views_beyond_a_storage_are_refused(refused, written, offset, size, stride):
    saved = Tensor(Storage(np.zeros(6, np.float32), "0"), offset, size, stride)
    assert "a tensor reaches beyond its storage" in refused(written(saved))


@both_formats
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2,), (-1,)),
        (-1, (1,), (1,)),
        (0, (-1,), (1,)),
        (0, (2, 3), (1,)),
        (0, (2**62, 2**62), (0, 0)),
        (0, (1,), (2**80,)),
        (0, (1,) * 100, (1,) * 100),
        (0.0, (1,), (1,)),
        (0, [1], [1]),
        (None, None, None),
    ],
)
def test_impossible_views_are_refused(refused, written, offset, size, stride):
    refused(written(Tensor(Storage(np.zeros(6, np.float32), "0"), offset, size, stride)))


@both_formats
@pytest.mark.parametrize(
    "claimed", [5, 7, 10**15, 1 << 20_000, -6], ids=["5", "7", "vast", "unprintable", "negative"]
)
def test_false_storage_sizes_are_refused_before_they_cost_memory(refused, written, claimed):
    refused(written(Tensor(Storage(np.zeros(6, np.float32), "0", claimed), 0, (1,), (1,))))


@both_formats
def test_a_storage_of_two_sizes_is_refused(refused, written):
    first, second = (Storage(np.zeros(6, np.float32), "0", claimed) for claimed in (None, 5))
    saved = [Tensor(storage, 0, (1,), (1,)) for storage in (first, second)]
    assert "two types or sizes" in refused(written(saved))


def test_storages_must_be_the_ones_listed(refused):
    data = legacy_bytes(tensor(np.zeros(2, np.float32), "7"))
    listed = pickle.dumps(["7"], 2)
    assert listed in data
    assert "listed" in refused(data.replace(listed, pickle.dumps(["8"], 2)))
    assert "listed" in refused(data.replace(listed, pickle.dumps(["7", "7"], 2)))
    assert "list its" in refused(data.replace(listed, pickle.dumps("7", 2)))


def test_compressed_archives_are_refused(refused):
    saved = tensor(np.zeros(100_000, np.float32), "0")
    assert "compressed" in refused(zip_bytes(saved, compression=zipfile.ZIP_DEFLATED))


def test_an_unknown_byte_order_is_refused(refused):
    saved = tensor(np.zeros(2, np.float32), "0")
    assert "byte order" in refused(zip_bytes(saved, order="middle"))


@both_formats
def test_a_bare_storage_is_refused(refused, written):
    assert "bare storage" in refused(written({"a": [(1, Storage(np.zeros(6), "0"))]}))


# Pickles that are programs ------------------------------------------------------------------------


def hostile_values(sentinel):
    opened = f"open({str(sentinel)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, (f"touch {sentinel}",)),
        "builtins.eval": Call(eval, (opened,)),
        "builtins.exec": Call(exec, (opened,)),
        "builtins.open": Call(open, (str(sentinel), "w")),
        "builtins.getattr": Call(
            Call(getattr, (Call(__import__, ("os",)), "system")), (f"touch {sentinel}",)
        ),
    }


HOSTILE = list(hostile_values(""))


@pytest.mark.parametrize("name", HOSTILE)
def test_the_hostile_pickles_do_what_they_threaten(sentinel, name):
    """Else the tests below would show nothing."""
    pickle.loads(pickle.dumps(hostile_values(sentinel)[name], 4))
    assert sentinel.exists()


@both_formats
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_globals_are_named_and_not_executed(refused, sentinel, written, name, protocol):
    value = hostile_values(sentinel)[name]
    # Protocol 2 writes Python 2's names; `io.open` and `_io.open` are other names of `open`.
    names = {name.replace("builtins", home) for home in ("builtins", "__builtin__", "io", "_io")}
    for saved in (value, {"state_dict": [value]}, Tensor(value, 0, (1,), (1,)), Parameter(value)):
        message = refused(written(saved, protocol))
        assert any(f"names {n}," in message for n in names)


def test_every_pickle_of_the_stream_is_restricted(refused, sentinel):
    hostile = pickle.dumps(hostile_values(sentinel)["builtins.eval"], 4)
    data = legacy_bytes([])
    for part in (MAGIC, 1001, SYSTEM, []):
        honest = pickle.dumps(part, 2)
        assert honest in data
        assert "names builtins.eval," in refused(data.replace(honest, hostile))


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name)) + b"\x93"


@both_formats
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("collections", "OrderedDict.__init__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "Size.__class__"),
        ("collections ", "OrderedDict"),
        ("torch", "FloatStorage "),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "FloatStorage"),
        ("torch\nposix", "system"),
        ("", ""),
    ],
)
def test_globals_match_exactly(refused, written, module, name):
    message = refused(written(None, body=b"\x80\x04" + stack_global(module, name) + b"."))
    assert "its pickle names " in message


@both_formats
@pytest.mark.parametrize(
    "body",
    {
        "instantiates at once": b"(S'touch x'\niposix\nsystem\n.",
        "marks and instantiates": b"(cposix\nsystem\nU\x01xo.",
        "makes a new object": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "uses an extension": b"\x80\x02\x82\x01.",
        "sets a function's attributes": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
        b"N}U\x0c__defaults__)s\x86b.",
        "sets other attributes": b"\x80\x02ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb.",
        "calls a storage type": b"\x80\x02ctorch\nFloatStorage\nK\x01\x85R.",
        "calls a number": b"\x80\x02K\x01)R.",
        "calls with a list": b"\x80\x02ccollections\nOrderedDict\n]R.",
        "calls with too few": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        "calls with nonsense": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03tR.",
        "makes a parameter of a number": b"\x80\x02ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
        "makes sizes of strings": b"\x80\x02ctorch\nSize\nU\x01a\x85\x85R.",
        "leaves a function": b"\x80\x02ctorch\nSize\n.",
        "leaves a storage type": b"\x80\x02]ctorch\nFloatStorage\na.",
        "underflows": b"\x80\x020.",
        "pops below a mark": b"\x80\x02K\x01(\x85.",
        "ends with nothing": b"\x80\x02.",
        "recalls nothing": b"\x80\x02h\x00.",
        "appends to a number": b"\x80\x02K\x01K\x02a.",
        "extends a dictionary": b"\x80\x02}(K\x02e.",
        "sets half an item": b"\x80\x02}(K\x02u.",
        "refers to a module": b"\x80\x02(U\x06moduleNNNNtQ.",
        "refers to a number": b"\x80\x02K\x01Q.",
        "is a text": b"V\\u00e9\n.",
        "is text of an odd escape": b"S'\\d'\n.",
        "names a global by a list": b"\x80\x04]U\x01a\x93.",
        "never stops": b"\x80\x02K\x01",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.filterwarnings("error")
def test_malformed_and_dishonest_opcodes_are_refused(refused, written, body):
    refused(written(None, body=body[1]))


def test_a_class_instantiated_by_name_is_named(refused, sentinel):
    """INST, of protocol 0, is a name and a call in one."""
    command = f"touch {sentinel}".encode()
    body = b"(U" + bytes([len(command)]) + command + b"iposix\nsystem\n."
    assert "names posix.system," in refused(legacy_bytes(None, body=body))
    pickle.loads(body)
    assert sentinel.exists()


def test_no_attribute_of_an_admitted_function_can_be_set(read, refused):
    """An attribute that stuck would change how the next file is read."""
    saved = tensor(np.arange(3.0), "0")
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__)s\x86b."
    assert "attributes" in refused(zip_bytes(None, body=body))
    state = b"\x80\x02ccollections\nOrderedDict\n)R}(U\x09_metadataNU\x05itemsNub."
    assert "attributes" in refused(zip_bytes(None, body=state))
    np.testing.assert_array_equal(read(zip_bytes(saved)), np.arange(3.0))


@both_formats
def test_bombs_cost_neither_memory_nor_time(read, refused, written):
    deep_key = b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."
    wide_key = b"\x80\x02})" + b"q\x00h\x00\x86" * 200 + b"Ns."
    assert "a dictionary has a key" in refused(written(None, body=deep_key))
    assert "a dictionary has a key" in refused(written(None, body=wide_key))
    pairs = b"\x80\x02ccollections\nOrderedDict\n])" + b"q\x00h\x00\x86" * 200 + b"N\x86a\x85R."
    assert "a dictionary has a key" in refused(written(None, body=pairs))
    # A global named by a nest that would take for ever to print.
    assert "<tuple>" in refused(written(None, body=wide_key.replace(b"Ns", b"U\x01a\x93")))
    # Each of these claims gigabytes in a few bytes.
    assert read(written(None, body=b"\x80\x02Nr\xff\xff\xff\xff.")) is None
    refused(written(None, body=b"\x80\x04\x8d" + b"\xff" * 7 + b"\x0fabc."))
    refused(written(None, body=b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0fabc."))
    refused(written(None, body=b"\x80\x02\x8b\xff\xff\xff\x7fabc."))
    # Depth alone is no offence.
    nest = read(written(None, body=b"\x80\x02)" + b"\x85" * 100_000 + b"."))
    assert isinstance(nest, tuple)


def test_no_module_is_imported_for_a_name(refused, monkeypatch):
    def refuse_import(name, *arguments, **keywords):
        assert not name.startswith(("torch", "antigravity"))
        return original(name, *arguments, **keywords)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse_import)
    message = refused(legacy_bytes(None, body=b"\x80\x02cantigravity\nfly\n."))
    assert "antigravity.fly" in message


# The published checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrapping"), [("mnist_vanilla", "state_dict"), ("mnist_adv_training", "net")]
)
def test_the_published_checkpoints_are_read(real_data, name, wrapping):
    checkpoint = read_torch_checkpoint(real_data / "checkpoints" / f"{name}.pth")
    state = checkpoint[wrapping]
    state = state[0] if isinstance(state, list) else state
    assert type(state) is OrderedDict
    shapes = [(16, 1, 4, 4), (16,), (32, 16, 4, 4), (32,), (100, 1568), (100,), (10, 100), (10,)]
    assert [tensor.shape for tensor in state.values()] == shapes
    assert all(tensor.dtype == np.float32 for tensor in state.values())

"""MANO's files: every array arrives, and nothing in a file can run."""

import contextlib
import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy.sparse import csc_matrix

from handrec.errors import UserError
from handrec.hand.mano_files import (
    SHAPES,
    ManoFileError,
    ManoNotFoundError,
    find_mano,
    read_mano,
    save_mano,
)
from tests.standins import Ch, OldCsc, Python2Pickler, Select, mano_content, write_mano_pickle

FIELDS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_components")


@pytest.fixture(scope="module")
def pickle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mano_pickle(tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl")


@pytest.mark.parametrize("side", ["right", "left"])
def test_original_layout_round_trips(tmp_path: Path, side: str) -> None:
    expected = mano_content(side)
    arrays = read_mano(write_mano_pickle(tmp_path / "any_name.pkl", side))
    for name in (*FIELDS, "hands_mean"):
        np.testing.assert_array_equal(getattr(arrays, name), expected[name])
    np.testing.assert_array_equal(arrays.faces, expected["f"])
    assert arrays.parents.tolist() == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    assert arrays.side == side


def test_layout_is_python_2s(pickle_file: Path) -> None:
    """Guard the stand-in: names and opcodes as the release has them, and plain pickle fails."""
    data = pickle_file.read_bytes()
    assert data.startswith(b"\x80\x02")
    for name in (
        b"cchumpy.ch\nCh\n",
        b"cchumpy.reordering\nSelect\n",
        b"cscipy.sparse.csc\ncsc_matrix\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"c__builtin__\nset\n",
        b"U\x07lrotmin",
    ):
        assert name in data
    with pytest.raises(ModuleNotFoundError, match="chumpy"):
        pickle.loads(data, encoding="latin1")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_cleaned_of_chumpy_are_read(tmp_path: Path, protocol: int) -> None:
    content: dict[str, Any] = dict(mano_content())
    content["J_regressor"] = csc_matrix(content["J_regressor"])
    content["shapedirs"] = np.asfortranarray(content["shapedirs"])
    content["weights"] = content["weights"].astype(">f4")
    file = tmp_path / "MANO_RIGHT.pkl"
    file.write_bytes(pickle.dumps(content, protocol))
    arrays, expected = read_mano(file), mano_content()
    for name in FIELDS:
        tolerance = 1e-6 if name == "weights" else 0
        np.testing.assert_allclose(getattr(arrays, name), expected[name], atol=tolerance)


def test_conversion_to_npz_keeps_everything(tmp_path: Path, pickle_file: Path) -> None:
    arrays = read_mano(pickle_file)
    save_mano(arrays, tmp_path / "MANO_RIGHT.npz")
    with np.load(tmp_path / "MANO_RIGHT.npz", allow_pickle=False) as archive:
        assert set(archive.files) == set(SHAPES)
    again = read_mano(tmp_path / "MANO_RIGHT.npz")
    for name, value in vars(arrays).items():
        np.testing.assert_array_equal(value, getattr(again, name))


# --- Nothing in a file can run ---------------------------------------------------------------


class Reduces:
    """Pickles to a call of anything with anything."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


class Named:
    """Something that pickles as a global of a given name."""

    def __init__(self, name: str) -> None:
        self.name = name


class ForgingPickler(Python2Pickler):
    dispatch: ClassVar = dict(Python2Pickler.dispatch)

    def save_forged(self, thing: Named) -> None:
        self.names = {**self.names, thing: thing.name}
        self.save_named(thing)

    dispatch[Named] = save_forged

    def save_reduce(
        self, func: Any, args: Any, state: Any = None, *_: Any, obj: Any = None
    ) -> None:
        """Write the call without asking whether it makes sense."""
        if isinstance(func, Named):
            self.save(func)
            self.save(tuple(args))
            self.write(b"R")
            if state is not None:
                self.save(state)
                self.write(b"b")
        else:
            super().save_reduce(func, args, state, obj=obj)


def forged(content: Any) -> bytes:
    file = io.BytesIO()
    ForgingPickler(file).dump(content)
    return file.getvalue()


def stacked(module: str, name: str, *arguments: str) -> bytes:
    """Protocol 4: names come from the stack, so that dots in them are attributes."""
    words = (b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    call = b"".join(b"\x8c" + bytes([len(a)]) + a.encode() for a in arguments)
    return b"\x80\x04" + b"".join(words) + b"\x93" + b"(" + call + b"tR."


def called(name: str, *arguments: Any) -> Any:
    return Reduces(Named(name), arguments)


def python(shell: str) -> str:
    return f"__import__('os').system({shell!r})"


def object_array(payload: Any) -> Any:
    """A numpy array of objects, as numpy pickles it."""
    dtype = Reduces(Named("numpy dtype"), ("O8", 0, 1), (3, "|", None, None, None, -1, -1, 63))
    state = (1, (1,), dtype, False, [payload])
    return Reduces(
        Named("numpy.core.multiarray _reconstruct"), (Named("numpy ndarray"), (0,), "b"), state
    )


Attack = Callable[[str], bytes]

ATTACKS: dict[str, tuple[Attack, str]] = {
    "os.system": (lambda sh: forged(called("os system", sh)), "os.system"),
    "eval": (lambda sh: forged({"f": called("__builtin__ eval", python(sh))}), "__builtin__.eval"),
    "object array": (
        lambda sh: forged({"f": object_array(called("posix system", sh))}),
        "posix.system",
    ),
    "dotted name": (lambda sh: stacked("numpy.f2py", "os.system", sh), "numpy.f2py.os.system"),
    "known name, and a dot": (
        lambda sh: stacked("numpy", "ndarray.__class__.__base__.__subclasses__"),
        "numpy.ndarray.__class__.__base__.__subclasses__",
    ),
    "getattr": (lambda sh: stacked("builtins", "getattr", "numpy", "load"), "builtins.getattr"),
    "numpy's own": (
        lambda sh: stacked("numpy.testing._private.utils", "runstring", python(sh), "x"),
        "numpy.testing._private.utils.runstring",
    ),
    "apply": (lambda sh: forged(called("__builtin__ apply", Named("os system"), (sh,))), "apply"),
    "instance": (lambda sh: b"(S'" + sh.encode() + b"'\nios\nsystem\n.", "os.system"),
    "object dtype": (lambda sh: forged({"f": object_array(1)}), "'O8'"),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_are_refused_by_name_and_do_not_run(tmp_path: Path, attack: str) -> None:
    canary = tmp_path / "canary"
    make, name = ATTACKS[attack]
    file = tmp_path / "MANO_RIGHT.pkl"
    file.write_bytes(make(f"touch {canary}"))
    with pytest.raises(ManoFileError, match="refused; it is not a MANO file") as caught:
        read_mano(file)
    assert name in str(caught.value)
    assert str(caught.value).startswith("MANO_RIGHT.pkl asks for ")
    assert "\n" not in str(caught.value)
    assert not canary.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """The same bytes do run under plain pickle: otherwise the test above would prove nothing."""
    canary = tmp_path / "canary"
    for attack in ("os.system", "eval", "object array", "dotted name", "instance"):
        pickle.loads(ATTACKS[attack][0](f"touch {canary}"), encoding="latin1")
        assert canary.exists()
        canary.unlink()


def array_call(*arguments: Any, state: Any = None) -> Any:
    return Reduces(Named("numpy.core.multiarray _reconstruct"), arguments, state)


def forged_array(shape: Any, code: Any, raw: Any, order: Any = "<") -> Any:
    dtype = Reduces(Named("numpy dtype"), (code, 0, 1), (3, order, None, None, None, -1, -1, 0))
    return array_call(Named("numpy ndarray"), (0,), "b", state=(1, shape, dtype, False, raw))


def forged_sparse(**state: Any) -> Any:
    sparse = OldCsc(mano_content()["J_regressor"])
    vars(sparse).update(state)
    return sparse


WEIRD: dict[str, Callable[[], Any]] = {
    "no dictionary": lambda: [1, 2],
    "array without state": lambda: {"f": array_call("os", "system")},
    "state of numbers": lambda: {"f": array_call(state=(1, 2, 3, 4, 5))},
    "fewer bytes than the shape": lambda: {"f": forged_array((1538, 3), "u4", b"1234")},
    "shape of minus one": lambda: {"f": forged_array((-1, 3), "u4", b"1" * 48)},
    "huge shape": lambda: {"f": forged_array((2**62, 4), "u4", b"1" * 48)},
    "shape of text": lambda: {"f": forged_array("os", "u4", b"1" * 48)},
    "structured dtype": lambda: {"f": forged_array((1,), "V8", b"1" * 8)},
    "dtype of a list": lambda: {"f": forged_array((1,), [("a", "O")], b"1" * 8)},
    "byte order": lambda: {"f": forged_array((1,), "u4", b"1" * 4, order="O")},
    "raw data of an object": lambda: {"f": forged_array((1,), "u4", Named("numpy dtype"))},
    "array of a set": lambda: {"f": {1, 2}},
    "chumpy of text": lambda: {"f": Ch("os.system")},  # type: ignore[arg-type]
    "chumpy without state": lambda: {"f": Reduces(Named("chumpy.ch Ch"), ("x",))},
    "index beyond the source": lambda: {"shapedirs": Select(Ch(np.ones(3)), np.array([9]), (1,))},
    "row beyond the matrix": lambda: {"J_regressor": forged_sparse(indices=np.full(256, 16))},
    "negative row": lambda: {"J_regressor": forged_sparse(indices=np.full(256, -1))},
    "column beyond the matrix": lambda: {"J_regressor": forged_sparse(indptr=np.arange(1000))},
    "columns in disorder": lambda: {"J_regressor": forged_sparse(indptr=np.arange(779)[::-1])},
    "matrix of exabytes": lambda: {"J_regressor": forged_sparse(_shape=(2**31, 2**31))},
}


@pytest.mark.parametrize("weird", WEIRD)
def test_allowed_names_used_wrongly_give_one_clear_line(tmp_path: Path, weird: str) -> None:
    file = tmp_path / "MANO_RIGHT.pkl"
    file.write_bytes(forged(WEIRD[weird]()))
    with pytest.raises(ManoFileError, match=r"^MANO_RIGHT\.pkl .*not a MANO file") as caught:
        read_mano(file)
    assert "\n" not in str(caught.value)


RAW: dict[str, bytes] = {
    "array that contains itself": b"\x80\x02}U\x01fcchumpy.ch\nCh\n)\x81q\x05}U\x01xh\x05sbs.",
    "changing a class": b"\x80\x02cchumpy.ch\nCh\n}U\x04kindU\x05arraysb.",
    "slots of a class": b"\x80\x02cchumpy.ch\nCh\nN}U\x04kindU\x05arrays\x86b.",
    "memory": b"\x80\x02}r\xff\xff\xff\x7f.",
    "persistent object": b"Pos.system\n.",
    "extension": b"\x80\x02\x82\x01.",
    "long text": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "long frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}.",
    "empty": b"",
    "text": b"<!DOCTYPE html><html>please log in</html>",
    "stack underflow": b"\x80\x02R.",
    "zip": b"PK\x03\x04 and then nothing",
}


@pytest.mark.parametrize("raw", RAW)
def test_hostile_opcodes_give_one_clear_line(tmp_path: Path, raw: str) -> None:
    file = tmp_path / "MANO_RIGHT.pkl"
    file.write_bytes(RAW[raw])
    with pytest.raises(ManoFileError, match=r"^MANO_RIGHT\.pkl .*not a MANO file"):
        read_mano(file)
    read_mano(write_mano_pickle(tmp_path / "after.pkl"))  # and nothing of it stayed behind


def test_names_cannot_forge_the_message(tmp_path: Path) -> None:
    file = tmp_path / "MANO_RIGHT.pkl"
    file.write_bytes(stacked("os", "\n\x1b[2Jall is well" + "x" * 100))
    with pytest.raises(ManoFileError) as caught:
        read_mano(file)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_npz_of_objects_does_not_run(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "MANO_RIGHT.npz"
    payload = Reduces(eval, (f"open({str(canary)!r}, 'w')",))
    np.savez(file, **{**mano_content(), "f": np.array([payload], object)})
    with pytest.raises(ManoFileError, match="damaged, or not a MANO file"):
        read_mano(file)
    assert not canary.exists()


# --- Damage ------------------------------------------------------------------------------------


def test_truncated_files_give_one_clear_line(tmp_path: Path, pickle_file: Path) -> None:
    data = pickle_file.read_bytes()
    file = tmp_path / "MANO_RIGHT.pkl"
    offsets = np.unique(np.geomspace(1, len(data) - 1, 60).astype(int))
    for offset in [*range(20), *offsets, *range(len(data) - 20, len(data))]:
        file.write_bytes(data[:offset])
        with pytest.raises(ManoFileError, match=r"^MANO_RIGHT\.pkl is damaged, or not"):
            read_mano(file)


def test_flipped_bytes_never_give_a_traceback(tmp_path: Path, pickle_file: Path) -> None:
    data, random = bytearray(pickle_file.read_bytes()), np.random.default_rng(0)
    structure = [place for _, _, place in pickletools.genops(bytes(data))]
    file = tmp_path / "MANO_RIGHT.pkl"
    for place in random.choice(structure, 150, replace=False):
        original, data[place] = data[place], random.integers(256)
        file.write_bytes(data)
        with contextlib.suppress(UserError):  # some bytes do not matter
            read_mano(file)
        data[place] = original


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weights", None, "holds no 'weights'"),
        ("weights", np.zeros((778, 17)), r"'weights' has the shape \(778, 17\), not \(778, 16\)"),
        ("v_template", np.full((778, 3), np.nan), "'v_template' holds numbers that are not finite"),
        ("f", np.full((1538, 3), 778, np.uint32), "its 'f' names vertices that do not exist"),
        ("f", np.zeros((1538, 3)), "its 'f' is of float64"),
        ("kintree_table", np.zeros((2, 16), np.uint32), "its 'kintree_table' is not a hand's"),
        ("hands_mean", np.zeros(45, complex), "the dtype 'c16': refused"),
    ],
)
def test_errors_name_the_array(tmp_path: Path, name: str, value: Any, message: str) -> None:
    content: dict[str, Any] = dict(mano_content())
    content[name] = value
    if value is None:
        del content[name]
    with pytest.raises(ManoFileError, match=message):
        read_mano(write_mano_pickle(tmp_path / "MANO_RIGHT.pkl", content=content))


# --- Where it is looked for ----------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HANDREC_MANO", str(tmp_path / "named"))
    return tmp_path


def test_search_order(places: Path) -> None:
    """Written from the last place to the first, each new file takes over."""
    for folder in ("home/.cache/handrec/mano", "models/mano", "named"):
        for suffix in ("pkl", "npz"):
            file = places / folder / f"MANO_LEFT.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            assert find_mano("left").resolve() == file
    explicit = places / "mine.pkl"
    explicit.touch()
    assert find_mano("left", explicit) == explicit
    assert find_mano("left", places / "models/mano") == places / "models/mano/MANO_LEFT.npz"


def test_missing_says_what_to_do(places: Path) -> None:
    with pytest.raises(ManoNotFoundError) as caught:
        find_mano("right")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, UserError)
    message = str(caught.value)
    for word in ("MANO_RIGHT.pkl", "mano.is.tue.mpg.de", "HANDREC_MANO", "models/mano", "OpenHand"):
        assert word in message
    assert "\n" not in message
    with pytest.raises(ManoNotFoundError, match="nowhere"):  # an explicit path is not replaced
        find_mano("right", places / "nowhere")

"""What a hostile or broken other side may answer, and what a careless program may hand over as a payload."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MIB = 1024 * 1024
LONG = 60_000


def fill(form: str, values: Iterable[str | bytes]) -> list[bytes]:
    """The form with each of these in the place of its question mark."""
    return [form.encode().replace(b"?", each.encode() if isinstance(each, str) else each) for each in values]


def words(text: str) -> list[str]:
    return text.split()


DEPTHS = (1, 32, 33, 500, 900, 990, 995, 1000, 5000, 30_000)
DIGITS = (1, 17, 18, 19, 20, 21, 100, 4300, 4301, LONG)

#: Texts for the judge of an upload: more than two hundred.
DOCUMENTS: list[bytes] = [
    # depth, closed and left open
    *fill('{"code":0,"x":?}', ["[" * depth + "]" * depth for depth in DEPTHS]),
    *fill('{"code":0,"x":?', ["[" * depth for depth in DEPTHS]),
    *fill('{"code":0,"x":?', ['{"a":' * depth for depth in DEPTHS]),
    *fill("?", ['{"a":' * depth + "0" + "}" * depth for depth in DEPTHS]),
    *fill("?", ["[" * depth + "]" * depth for depth in DEPTHS]),
    # numbers
    *fill('{"code":?}', ["9" * digits for digits in DIGITS]),
    *fill('{"code":-?}', ["9" * digits for digits in DIGITS]),
    *fill('{"code":"?"}', ["0" * digits for digits in DIGITS]),
    *fill('{"code":0,"n":[?]}', [",".join(["1" * 4300] * 14)]),
    *fill(
        '{"code":?}', words("0.0 -0 -0.0 0e0 1e999 -1e999 1e-999 200.0 2e2 1 201 199 2000 0200 20_0 0b0 0o0 0x0 00 +0 .0 0.")
    ),
    *fill('{"code":?}', words("NaN Infinity -Infinity nan true false null [] {} [0] \"\" '0' 0;1 0,")),
    *fill('{"code":"?"}', ["200", "0200", "2OO", "200.0", "+200", "-200", "--0", "-", "\\n0", " 0", "0 ", "\\u0030", "1_0"]),
    *fill('{"code":"?"}', ["\u0660", "\uff10", "\u0966", "\U0001d7ce", "\u00b2", "0\u200b"]),
    # names
    *fill('{"code":0,?}', ['"code":1', '"code":0', '"c\\u006fde":1', '"a":1,"a":2', '"x":{"a":1,"a":2}', ",", ""]),
    *fill('{"?":0}', ["Code", "code\\u0000", " code", "co\\u0064e", "k" * LONG, "__proto__", "$ne"]),
    *fill('{"code":0,?}', [",".join(f'"{number}":0' for number in range(5000))]),
    *fill('{"apim_status":?,"code":0}', [*words("4011 4012 null {} NaN 1e999 true 0"), "9" * 4300]),
    # words
    *fill('{"code":0,"msg":?}', ["1", "null", "[]", "{}", '"\\ud800"', '"\\u0000"', f'"{"x" * LONG}"', '"\\u202e\\u001b[2J"']),
    *fill('{"code":0,"requestId":?}', ["1", "[]", '"\\udfff\\ud800"', '"' + "\\u0001" * 9000 + '"']),
    *fill('{"code":0,"x":"?"}', ["\\", "\\x41", "\\u12", "\\ud83d", "\t", "\n", "\x7f", "\\/", "\U0010ffff" * 10_000]),
    # what stands around it
    *fill(
        '?{"code":0}',
        [b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\xa0", b"\xc2\xa0", b"\x0b", b")]}'\n", b"while(1);", b" " * LONG],
    ),
    *fill('{"code":0}?', ["x", "\x00", "{}", '{"code":1}', "\n\n", " " * LONG, "//", "/**/"]),
    *('{"code":0}'.encode(name) for name in ("utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")),
    # no object at all
    *fill("?", [b"", b" ", b"\x00", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x1f\x8b\x08", b"\x80\x04K\x00.", b"!!python/x"]),
    *fill(
        "?", ["null", "0", '"code"', "[0]", "{", "}", "{}", '{"', '{"code"', '{"code":', '{"code":0', "{'code':0}", "{code:0}"]
    ),
    *fill("?", ["<html>", '{"__class__":"os.system","code":99400}', '{"code":{"$ne":1}}', '{"py/object":"x","code":99404}']),
]

TOKEN = '{"status":0,"data":{"accessToken":"t","expire":?}}'
#: More of them for who asks for a token.
TOKENS: list[bytes] = [
    *fill(TOKEN, [*words('1e999 -1e999 NaN -1 0 null {} "7" true'), "9" * 4300]),
    *fill(
        TOKEN.replace('"t"', "?").replace(":?}}", ":1}}"), ["1", "[]", "null", '""', '"a\\r\\nX: y"', '"\\u00e9"', '"\\u0000"']
    ),
    *fill('{"status":0,"data":?}', ["null", "[]", "0", '"x"', "{}", "[" * 900 + "]" * 900]),
    *fill('{"status":?}', [*words('true 0.0 1e999 NaN "0" -1 1001 1002 1003 1004 1005 1203 1204 null [] {}'), "9" * 4300]),
    *fill('{"status":1002,"msg":?}', ["[" * 990 + "]" * 990, "NaN", "9" * 4300, f'"{"secret-of-the-test" * 3000}"']),
]


def tower(depth: int, kind: type) -> Any:
    """Lists or objects in each other."""
    built: Any = 0
    for _ in range(depth):
        built = [built] if kind is list else {"a": built}
    return built


def circle() -> Any:
    """A list that holds itself."""
    turn: list[Any] = []
    turn.append(turn)
    return turn


#: What Python can hold and no JSON can, or no reader will.
OBJECTS: list[Any] = [
    *(tower(depth, kind) for depth in (32, 33, 1000, 100_000) for kind in (list, dict)),
    *(10**digits for digits in (999, 1000, 4299, 4300)),
    *(-(10**4300), 1 << 100_000, float("nan"), float("inf"), -float("inf"), 1j),
    *(b"x", bytearray(b"x"), {1, 2}, object(), Ellipsis, type, len, range(3), iter([])),
    *("\ud800", "\udfff\ud800", {"\ud800": 1}, {"a\x00b": 1}, {1: 1}, {None: 1}, {True: 1}, {(): 1}, {"a": {1.5: 2}}),
    *(circle(), {"a": circle()}, [0] * 300_001, dict.fromkeys(map(str, range(300_001))), [[0] * 1000] * 301),
    *([[[[[]]]]] * 10, [None] * 1000, {"a": "\x00\u202e\x1b[2J"}, "x" * 4 * MIB, {"x" * 100_000: 1}),
]

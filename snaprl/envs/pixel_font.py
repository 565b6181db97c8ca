"""A 5 x 7 pixel font of capitals, digits and a few signs, for captions without any dependency."""

import numpy as np

HEIGHT, ADVANCE = 7, 6  # pixels of a glyph, and from one to the next

# Five columns of a glyph from the left, two hex digits each; bit 0 is the top row.
_COLUMNS = """
0 3E5149453E  1 00427F4000  2 4261514946  3 2141454B31  4 1814127F10  5 2745454539  6 3C4A494930
7 0171090503  8 3649494936  9 064949291E  A 7E1111117E  B 7F49494936  C 3E41414122  D 7F4141221C
E 7F49494941  F 7F09090901  G 3E4149497A  H 7F0808087F  I 00417F4100  J 2040413F01  K 7F08142241
L 7F40404040  M 7F020C027F  N 7F0408107F  O 3E4141413E  P 7F09090906  Q 3E4151215E  R 7F09192946
S 4649494931  T 01017F0101  U 3F4040403F  V 1F2040201F  W 3F4038403F  X 6314081463  Y 0708700807
Z 6151494543  / 2010080402  + 08083E0808  - 0808080808  . 0060600000  : 0036360000
"""
_GLYPHS: dict[str, str] = dict(zip(_COLUMNS.split()[::2], _COLUMNS.split()[1::2], strict=True))


def text(words: str) -> np.ndarray:
    """Returns `words` in capitals, bool [7, 6 * len(words)]; a sign without a glyph stays blank."""
    columns = "".join(_GLYPHS.get(sign, "0" * 10) + "00" for sign in words.upper())
    bits = np.frombuffer(bytes.fromhex(columns), np.uint8)
    return np.unpackbits(bits[None], axis=0, bitorder="little")[:HEIGHT].astype(bool)

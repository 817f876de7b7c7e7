"""The rules of the registry as mathematics: MathML, which browsers draw by themselves; words between stay words.

A rule is text such as "theta <- theta - lr * (m/c1) / (sqrt(v/c2) + eps),  c_i = 1 - beta_i^t".  What reads as a
formula becomes one (Greek letters, indices, powers, roots, fractions); prose stays prose.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "eps": "ε", "epsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "lam": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ",
    "sigma": "σ", "tau": "τ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ",
    "Theta": "Θ", "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω", "inf": "∞",
}
FUNCTIONS = {
    "exp", "log", "sign", "min", "max", "mean", "sum", "tr", "diag", "cos", "sin", "tanh", "argmin", "argmax",
    "softmax", "clip", "floor", "ceil", "median", "var", "std", "prox", "qr", "svd", "cosh", "sinh", "relu",
    "softplus", "det", "rank", "atan2",
}
OPERATORS = {  # those that are drawn as another sign
    "<-": "←", "->": "→", "<=": "≤", ">=": "≥", "!=": "≠", "-=": "−=", "-+": "∓", "+-": "±", "*": "⋅", "-": "−",
    "~": "∼", "'": "′", "...": "…", ".": "·",
}
TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![A-Za-z]))"
    r"|(?P<name>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*)"
    r"|(?P<operator><-|->|<=|>=|!=|\+=|-=|-\+|\+-|\.\.\.|(?<=\w)\.(?=[A-Za-z])|[-+*/^_=<>|~'%])"
    r"|(?P<open>[(\[{⟨])|(?P<close>[)\]}⟩])|(?P<space>\s+)|(?P<other>.)")
INNER = re.compile(r"<([^<>=\s-][^<>=]*,[^<>=]*[^<>=\s-])>")  # an inner product, not a comparison
ARROWS = {"<-", "->", "=", "<=", ">=", "<", ">", "!=", "+=", "-=", "*", "/", "^", "+"}


@dataclass(eq=False)
class Token:
    kind: str
    text: str


def _tokens(text: str) -> list[Token]:
    return [Token(m.lastgroup or "", m[0]) for m in TOKEN.finditer(INNER.sub(r"⟨\1⟩", text))]


def rule(text: str, names: frozenset[str] = frozenset()) -> str:
    """A rule as HTML: a line for each statement.  `names` are those of hyper-parameters, state and inputs."""
    lines = []
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        parts = re.split(r";\s\s+|,\s\s+", line.strip())
        for part in parts:
            lines.append(f'<div style="padding-left:{depth / 2}em">{statement(part, names)}</div>')
    return f'<div class="rule">{"".join(lines)}</div>'


def statement(text: str, names: frozenset[str] = frozenset()) -> str:
    """One statement: formulas as MathML, words as text."""
    tokens, out, run = _tokens(text), [], []
    depth = 0

    def flush() -> None:
        spaces = ""
        while run and run[-1].kind == "space":
            spaces = run.pop().text
        if run:
            out.append(f"<math>{_Parser(run, names).all()}</math>")
            run.clear()
        out.append(spaces)

    for i, token in enumerate(tokens):
        if depth == 0 and (not _is_mathematics(tokens, i, names) or (token.kind == "close" and not run)):
            flush()
            out.append(html.escape(token.text))
            continue
        if token.kind == "space" and not run:
            out.append(token.text)
            continue
        depth += (token.kind == "open") - (token.kind == "close")
        depth = max(depth, 0)
        run.append(token)
    flush()
    return "".join(out)


def _is_mathematics(tokens: list[Token], i: int, names: frozenset[str]) -> bool:
    token = tokens[i]
    if token.kind == "name":
        return not _is_word(tokens, i, names)
    if token.kind == "space":
        return True
    if token.kind == "operator" and token.text in ("-", "'"):  # (a hyphen or an apostrophe between letters is none)
        return not all(0 <= j < len(tokens) and tokens[j].kind == "name" and _is_word(tokens, j, names)
                       for j in (i - 1, i + 1))
    if token.kind == "open":  # (a remark in parentheses is none)
        inside = range(i + 1, next((j for j in range(i, len(tokens)) if tokens[j].kind == "close"), len(tokens)))
        return not inside or any(
            tokens[j].kind in ("number", "operator", "open")
            or tokens[j].kind == "name" and not _is_word(tokens, j, names)
            for j in inside
        )
    return token.kind in ("number", "operator", "close")


def _is_word(tokens: list[Token], i: int, names: frozenset[str]) -> bool:
    """Whether a name is a word of prose."""
    text = tokens[i].text
    after = next((t for t in tokens[i + 1 :] if t.kind != "space"), None)
    before = next((t for t in reversed(tokens[:i]) if t.kind != "space"), None)
    base = text.partition("_")[0].rstrip("0123456789")
    if text == "a" and after is not None and after.kind == "name" and len(after.text) > 2 and after.text not in GREEK:
        return True  # the article
    if len(base) <= 1 or base in GREEK or text in names or text == "sqrt":
        return False
    if text in FUNCTIONS:
        if any(t is not None and t.text in ARROWS for t in (before, after)):
            return False
        return after is None or not (
            after.kind in ("open", "number") or after.kind == "name" and not _plain(after.text) or after.text in "|_^"
        )
    if after is not None and (after.text in ARROWS or (after.kind == "open" and tokens[i + 1].kind == "open")):
        return False
    if "_" in text or any(c.isdigit() for c in text):
        return False
    if (len(text) <= 2 and any(c.isupper() for c in text)) or (len(text) <= 3 and text.isupper()):
        return False
    return not (before is not None and before.text in ARROWS - {"<-", "="} | {"-"})


def _plain(text: str) -> bool:
    return len(text) > 2 and text not in GREEK and "_" not in text


class _Parser:
    """Tokens of one formula to MathML."""

    def __init__(self, tokens: list[Token], names: frozenset[str]) -> None:
        self.tokens, self.names, self.at = tokens, names, 0

    def all(self) -> str:
        out = []
        while self.at < len(self.tokens):
            out += self.row()
            if self.at < len(self.tokens):  # a closing bracket that nothing opened
                out.append(f'<mo stretchy="false">{html.escape(self.tokens[self.at].text)}</mo>')
                self.at += 1
        return "".join(out)

    def row(self) -> list[str]:
        """Nodes up to a closing bracket or the end."""
        out: list[str] = []
        while (token := self.peek()) is not None and token.kind != "close":
            if token.text == "/" and out and self.is_fraction(out[-1]):
                self.at += 1
                self.skip()
                while out and not out[-1]:
                    out.pop()
                low, high = self.scripted(), out.pop()
                out.append(f"<mfrac>{_bare(high)}{_bare(low)}</mfrac>")
                continue
            node = self.scripted()
            if node:
                out.append(node)
        return out

    def is_fraction(self, high: str) -> bool:
        """Whether the "/" that comes next stands between two atoms that it binds, and nothing else does.

        With spaces around it both sides may be longer: only what stands in parentheses, or under a root, is sure then.
        """
        below = next((t for t in self.tokens[self.at + 1 :] if t.kind != "space"), None)
        if below is None or below.kind not in ("name", "number", "open"):
            return False
        if re.match(r"(?:<m(?:sup|sub|row)>)*<m(?:o stretchy|space)|<mo", high):
            return False
        after = self.tokens[self.tokens.index(below, self.at) + 1 :]
        called = bool(after) and after[0].kind == "open"
        if below.text in FUNCTIONS and not called:
            return False
        spaced = self.tokens[self.at - 1].kind == "space" or self.tokens[self.at + 1].kind == "space"
        closed = self.tokens[self.at - 1 - (self.tokens[self.at - 1].kind == "space")].kind == "close"
        return not spaced or (closed and (below.kind == "open" or called))

    def peek(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def skip(self) -> None:
        while (token := self.peek()) is not None and token.kind == "space":
            self.at += 1

    def scripted(self) -> str:
        """An atom with the powers and indices behind it."""
        node = self.atom()
        if not node or node.startswith("<mspace"):
            return node
        while (token := self.peek()) is not None and token.text in ("^", "_", "'"):
            if token.text == "'":
                self.at += 1
                node = f"<msup>{node}<mo>′</mo></msup>"
                continue
            following = self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else None
            ends = following is None or following.kind in ("space", "close")
            if token.text == "^" and (ends or following.kind == "other" or following.text in "*/="):
                self.at += 1  # (a hat: x^ is another x)
                node = f"<mover accent='true'>{node}<mo>^</mo></mover>"
                continue
            if ends:
                break
            self.at += 1
            tag = "msup" if token.text == "^" else "msub"
            node = f"<{tag}>{node}{self.script()}</{tag}>"
        return node

    def script(self) -> str:
        sign = ""
        if self.peek() is not None and self.peek().text in ("-", "+"):
            sign = f"<mo>{OPERATORS.get(self.peek().text, self.peek().text)}</mo>"
            self.at += 1
        half = [t.text for t in self.tokens[self.at : self.at + 3]]
        if len(half) == 3 and half[1] == "/" and half[0] in ("1", "3") and half[2].isdigit():
            self.at += 3
            return f"<mrow>{sign}<mn>{half[0]}</mn><mo>/</mo><mn>{half[2]}</mn></mrow>"
        if self.peek() is None:
            return f"<mrow>{sign}</mrow>"
        return f"<mrow>{sign}{_bare(self.atom()).replace('<mo>{</mo>', '').replace('<mo>}</mo>', '')}</mrow>"

    def atom(self) -> str:
        token = self.tokens[self.at]
        self.at += 1
        if token.kind == "space":
            return "" if not self._between_words() else "<mspace width='0.35em'/>"
        if token.kind == "number":
            return f"<mn>{token.text}</mn>"
        if token.kind == "open":
            inside = self.row()
            close = ""
            if self.peek() is not None:
                close = self.peek().text
                self.at += 1
            return f"<mrow><mo>{token.text}</mo>{''.join(inside)}<mo>{close}</mo></mrow>"
        if token.kind == "name":
            if token.text == "sqrt" and self.peek() is not None and self.peek().text == "(":
                return f"<msqrt>{_bare(self.atom())}</msqrt>"
            node = self.name(token.text)
            if self.peek() is not None and self.peek().text == "(":
                return f"<mrow>{node}{self.atom()}</mrow>"
            if self.peek() is not None and self.peek().text == "." and self.at + 1 < len(self.tokens):
                self.at += 1
                return f"<mrow>{node}<mo>·</mo>{self.scripted()}</mrow>"
            return node
        text = html.escape(OPERATORS.get(token.text, token.text))
        return f'<mo stretchy="false">{text}</mo>' if token.text == "|" else f"<mo>{text}</mo>"

    def _between_words(self) -> bool:
        before = self.tokens[self.at - 2] if self.at >= 2 else None
        after = self.peek()
        if before is None or after is None:
            return False
        return before.kind in ("name", "number", "close") and after.kind in ("name", "number", "open")

    def name(self, text: str) -> str:
        if text == "inf":
            return "<mn>∞</mn>"
        if text in GREEK:
            return f"<mi>{GREEK[text]}</mi>"
        base, _, below = text.partition("_")
        letters, digits = re.fullmatch(r"(.*?)(\d*)", base).groups()  # type: ignore[union-attr]
        whole = letters in GREEK or len(letters) == 1
        if whole and (text not in self.names or not below):
            symbol = f"<mi>{GREEK.get(letters, letters)}</mi>"
            index = ",".join(filter(None, [digits, *below.split("_")]))
            return f"<msub>{symbol}{_index(index)}</msub>" if index else symbol
        return f'<mi mathvariant="normal">{html.escape(text)}</mi>' if len(text) > 1 else f"<mi>{text}</mi>"


def _index(text: str) -> str:
    def part(text: str) -> str:
        if text.isdigit():
            return f"<mn>{text}</mn>"
        return f"<mi>{GREEK.get(text, text)}</mi>" if len(text) == 1 or text in GREEK else f"<mtext>{text}</mtext>"

    return f"<mrow>{'<mo>,</mo>'.join(map(part, text.split(',')))}</mrow>"


def _bare(node: str) -> str:
    """The node without the parentheses around it: those that a fraction, a root or an exponent makes needless."""
    found = re.fullmatch(r"<mrow><mo>\(</mo>(.*)<mo>\)</mo></mrow>", node, re.S)
    if not found or re.search(r"<mo>\)</mo></mrow>.*<mrow><mo>\(</mo>", found[1], re.S) and not _balanced(found[1]):
        return node
    return f"<mrow>{found[1]}</mrow>"


def _balanced(text: str) -> bool:
    depth = 0
    for token in re.findall(r"</?mrow>", text):
        depth += 1 if token == "<mrow>" else -1
        if depth < 0:
            return False
    return depth == 0

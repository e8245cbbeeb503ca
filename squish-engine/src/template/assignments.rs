//! Blocks that give names values, with a check around each value.
//!
//! What a template accumulates from one round of a loop or of a recursion to the next passes through a name, so this is where
//! values are kept from growing into what no budget of steps bounds: lists that hold themselves, or hold one list twice, forty
//! times over.

/// Checks a value that a plain name is given.
pub(super) const KEPT: &str = "__squish_kept";
/// Checks a value that becomes part of a namespace.
pub(super) const KEPT_WITHIN: &str = "__squish_kept_within";

/// The source with a check of each value that a name is given. Lines stay where they are.
///
/// | block | check |
/// | --- | --- |
/// | `set`, `with` | `NAME = VALUE` becomes `NAME = KEPT((VALUE))`, or `KEPT_WITHIN` where the name is one of a namespace |
/// | `for`, parameters of `macro` and `call` | `{% set NAME = KEPT((NAME)) %}` follows for each name |
pub(super) fn checked(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag[2..].find("#}").map_or(tag.len(), |end| end + 4),
            Some(b'{') => end_of(tag, "}}"),
            Some(b'%') => match lone(tag, "raw") {
                Some(start) => end_of_raw(tag, start),
                None => end_of(tag, "%}"),
            },
            _ => 1,
        };
        let (tag, after) = tag.split_at(length);
        match Block::read(tag) {
            Some(block) => block.push(&mut out),
            None => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Bytes of a block that consists of this word alone, as the engine reads it; `None` where more stands in it.
fn lone(tag: &str, word: &str) -> Option<usize> {
    let sign = |text: &str| usize::from(text.starts_with(['-', '+']));
    let body = &tag[2..];
    let rest = body[sign(body)..].trim_ascii_start().strip_prefix(word)?.trim_ascii_start();
    let rest = rest[sign(rest)..].strip_prefix("%}")?;
    Some(tag.len() - rest.len())
}

/// Bytes up to the end of a block `raw`, whose contents begin at `at`, and the one that closes it.
fn end_of_raw(tag: &str, mut at: usize) -> usize {
    while let Some(next) = tag[at..].find("{%") {
        at += next;
        if let Some(length) = lone(&tag[at..], "endraw") {
            return at + length;
        }
        at += 2;
    }
    tag.len()
}

/// Bytes up to the end of the delimiter that closes a tag; those in strings and in braces do not count.
fn end_of(tag: &str, close: &str) -> usize {
    let mut depth = 0usize;
    for (at, b) in code(tag, 2) {
        if depth == 0 && tag[at..].starts_with(close) {
            return at + close.len();
        }
        match b {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    tag.len()
}

/// The ASCII bytes of a tag outside of strings, with their places.
fn code(tag: &str, from: usize) -> impl Iterator<Item = (usize, u8)> {
    let (mut quote, mut escaped) = (None, false);
    tag.bytes().enumerate().skip(from).filter(move |(_, b)| match quote {
        Some(_) if escaped => {
            escaped = false;
            false
        }
        Some(open) => {
            escaped = *b == b'\\';
            if *b == open {
                quote = None;
            }
            false
        }
        None if matches!(b, b'\'' | b'"') => {
            quote = Some(*b);
            false
        }
        None => b.is_ascii(),
    })
}

/// A block: `{%- WORD` (the word again), what follows it, and `-%}`.
struct Block<'a> {
    head: &'a str,
    word: &'a str,
    body: &'a str,
    close: &'a str,
}

impl<'a> Block<'a> {
    /// Takes a block apart; `None` for another tag, or one that is not closed.
    fn read(tag: &'a str) -> Option<Self> {
        let open = tag.strip_suffix("-%}").or(tag.strip_suffix("+%}")).or(tag.strip_suffix("%}"))?;
        let text = open.strip_prefix("{%")?.trim_start_matches(['-', '+']).trim_start();
        let word = names(text).next().filter(|word| text.starts_with(word))?;
        let (head, body) = open.split_at(open.len() - text.len() + word.len());
        Some(Self { head, word, body, close: &tag[open.len()..] })
    }

    /// Writes it with its checks.
    fn push(&self, out: &mut String) {
        let Self { head, word, body, close } = *self;
        out.push_str(head);
        let mut bound = Vec::new();
        match word {
            // One without `=` captures what it encloses, which is text.
            "set" => push_value(out, body),
            "with" => push_values(out, body),
            "for" => {
                out.push_str(body);
                bound.extend(names(body).take_while(|name| *name != "in"));
            }
            "macro" | "call" => {
                out.push_str(body);
                let (name, parameters) = body.split_once('(').unwrap_or_default();
                // A call block without parameters goes on with what it calls.
                if word == "macro" || name.trim().is_empty() {
                    bound.extend(
                        segments(enclosed(parameters)).into_iter().filter_map(|one| names(one).next()),
                    );
                }
            }
            _ => out.push_str(body),
        }
        out.push_str(close);
        for name in bound {
            out.extend(["{% set ", name, " = ", KEPT, "((", name, "))", close]);
        }
    }
}

/// The names in a text that holds nothing but names, commas and brackets up to where it matters.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_between = |c: char| c.is_whitespace() || c.is_ascii_punctuation() && c != '_';
    text.split(is_between).filter(|name| !name.is_empty())
}

/// A text up to the bracket that closes one before it.
fn enclosed(text: &str) -> &str {
    let mut depth = 0usize;
    for (at, b) in code(text, 0) {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' if depth == 0 => return &text[..at],
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// The places of a byte outside of strings and brackets.
fn outermost(text: &str, wanted: u8) -> impl Iterator<Item = usize> {
    let mut depth = 0usize;
    code(text, 0).filter_map(move |(at, b)| {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        (depth == 0 && b == wanted).then_some(at)
    })
}

/// What commas part from one another.
fn segments(text: &str) -> Vec<&str> {
    let starts = std::iter::once(0).chain(outermost(text, b',').map(|at| at + 1));
    let ends = outermost(text, b',').chain([text.len()]);
    starts.zip(ends).map(|(start, end)| &text[start..end]).collect()
}

/// Writes `NAME = VALUE, NAME = VALUE` with a check around each value.
fn push_values(out: &mut String, text: &str) {
    for (i, segment) in segments(text).into_iter().enumerate() {
        out.push_str(if i > 0 { "," } else { "" });
        push_value(out, segment);
    }
}

/// Writes `NAME = VALUE` with a check around the value, or what is no such thing.
fn push_value(out: &mut String, text: &str) {
    let Some(equals) = outermost(text, b'=').next() else { return out.push_str(text) };
    let check = if text[..equals].contains('.') { KEPT_WITHIN } else { KEPT };
    let (name, value) = (&text[..=equals], &text[equals + 1..]);
    out.extend([name, " ", check, "((", value, "))"]);
}

#[cfg(test)]
mod tests {
    use super::checked;

    #[test]
    fn values_of_assignments_are_wrapped_and_nothing_else_is() {
        for (source, expected) in [
            ("{% set a = 1 %}", "{% set a = __squish_kept(( 1 ))%}"),
            ("{%- set ns.a = 'x=%}' -%}", "{%- set ns.a = __squish_kept_within(( 'x=%}' ))-%}"),
            ("{%-set a, b = f(x=1), {'k': '}'}%}z", "{%-set a, b = __squish_kept(( f(x=1), {'k': '}'}))%}z"),
            ("a\n{% set x\n = [1,\n2] %}", "a\n{% set x\n = __squish_kept(( [1,\n2] ))%}"),
            (
                "{% with a = [1, 2], (b, c)=x == y -%}",
                "{% with a = __squish_kept(( [1, 2])), (b, c)= __squish_kept((x == y ))-%}",
            ),
            (
                "{%- for a, b in {1: ')'}|items recursive -%}\n",
                "{%- for a, b in {1: ')'}|items recursive -%}{% set a = __squish_kept((a))-%}{% set b = __squish_kept((b))-%}\n",
            ),
            (
                "{% macro f(a, b={'k': ')'}) %}",
                "{% macro f(a, b={'k': ')'}) %}{% set a = __squish_kept((a))%}{% set b = __squish_kept((b))%}",
            ),
            ("{% call(a) f(x=1) %}", "{% call(a) f(x=1) %}{% set a = __squish_kept((a))%}"),
        ] {
            assert_eq!(checked(source), expected);
        }
        for same in [
            "{% set a %}x = 1{% endset %}",
            "{% set a | upper %}x{% endset %}",
            "{% call f(x=1) %}{% endcall %}{% macro f() %}{% endmacro %}{% with %}{% endwith %}{% elif a == 1 %}",
            "{# {% set a = 1 %} #}",
            "{% raw %}{% set a = 1 %}{% endraw %}",
            "{%- raw -%}{% endraw x %}{% set a = 1 %}{%-endraw+%}",
            "{{ {'a': {'b': 1}} }} and {{ \"{% set a = 1 %}\" }}",
            "{% if a == 1 %}{% settle a = 1 %}",
            "{% set a = 1",
            "{%",
            "{% set a =%}".trim_end_matches("%}"),
            "{",
            "é{é%é}",
        ] {
            assert_eq!(checked(same), same);
        }
    }

    proptest::proptest! {
        /// Without an assignment nothing changes, whatever else stands there.
        #[test]
        fn any_text(parts in proptest::collection::vec(0usize..14, 0..30)) {
            let known = ["{{", "}}", "{%", "%}", "{#", "#}", "'", "\"", "\\", "raw ", "endraw", "-", "é", "{"];
            let source: String = parts.iter().map(|part| known[*part]).collect();
            proptest::prop_assert_eq!(checked(&source), source);
        }
    }
}

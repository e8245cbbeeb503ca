//! `{% set NAME = VALUE %}` with a check around the value.
//!
//! What a template accumulates from one round of a loop to the next passes through a `set`, so this is where values are kept
//! from growing into what no budget of steps bounds: lists that hold themselves, or hold one list twice, forty times over.

/// Checks a value that a plain name is given.
pub(super) const KEPT: &str = "__squish_kept";
/// Checks a value that becomes part of a namespace.
pub(super) const KEPT_WITHIN: &str = "__squish_kept_within";

/// The source with each `VALUE` of `{% set NAME = VALUE %}` replaced by `KEPT((VALUE))`, and by `KEPT_WITHIN((VALUE))` where the
/// name is one of a namespace. Lines stay where they are.
pub(super) fn checked(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag[2..].find("#}").map_or(tag.len(), |end| end + 4),
            Some(b'{') => end_of(tag, "}}"),
            Some(b'%') => match keyword(tag) {
                "raw" => end_of_raw(tag),
                _ => end_of(tag, "%}"),
            },
            _ => 1,
        };
        let (tag, after) = tag.split_at(length);
        match tag.starts_with("{%") && keyword(tag) == "set" {
            true => push_set(&mut out, tag),
            false => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The word that a block begins with.
fn keyword(tag: &str) -> &str {
    let body = tag[2..].trim_start_matches(['-', '+']).trim_start();
    &body[..body.find(|c: char| !c.is_alphanumeric()).unwrap_or(body.len())]
}

/// Bytes up to the end of the block `raw` and the one that closes it.
fn end_of_raw(tag: &str) -> usize {
    let mut at = end_of(tag, "%}");
    while let Some(next) = tag[at..].find("{%") {
        at += next;
        if keyword(&tag[at..]) == "endraw" {
            return at + end_of(&tag[at..], "%}");
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

/// Writes a `set` block; one without `=` captures what it encloses, which is text.
fn push_set(out: &mut String, tag: &str) {
    let mut depth = 0usize;
    let equals = code(tag, 2).find(|(_, b)| {
        match b {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *b == b'='
    });
    let closed = tag.strip_suffix("-%}").or(tag.strip_suffix("+%}")).or(tag.strip_suffix("%}"));
    let (Some((equals, _)), Some(open)) = (equals, closed) else { return out.push_str(tag) };
    if open.len() <= equals {
        return out.push_str(tag);
    }
    let check = if tag[..equals].contains('.') { KEPT_WITHIN } else { KEPT };
    let (name, value) = (&tag[..=equals], &tag[equals + 1..open.len()]);
    out.extend([name, " ", check, "((", value, "))", &tag[open.len()..]]);
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
        ] {
            assert_eq!(checked(source), expected);
        }
        for same in [
            "{% set a %}x = 1{% endset %}",
            "{% set a | upper %}x{% endset %}",
            "{# {% set a = 1 %} #}",
            "{% raw %}{% set a = 1 %}{% endraw %}",
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

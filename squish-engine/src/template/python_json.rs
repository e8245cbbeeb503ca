//! JSON as Python's `json.dumps` writes it, which is what chat templates put in front of the model.

use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};

/// The arguments of `json.dumps` that templates use.
#[derive(Debug, Clone)]
pub(super) struct Style {
    /// Spaces per level; `None` puts everything on one line.
    pub indent: Option<usize>,
    /// Between items; Python's default is `", "`, and `","` with an indent.
    pub item_separator: String,
    /// Between a key and its value.
    pub key_separator: String,
    /// Writes everything beyond ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
}

impl Style {
    /// Python's defaults, except for `ensure_ascii`, which transformers turns off.
    pub fn new(indent: Option<usize>) -> Self {
        Style {
            indent,
            item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
            key_separator: ": ".to_owned(),
            ensure_ascii: false,
        }
    }

    /// `value` as JSON text; keys keep their order.
    pub fn write(&self, value: &Value) -> serde_json::Result<String> {
        let writer = PythonFormatter { style: self, level: 0, empty: true };
        let mut out = Vec::new();
        value.serialize(&mut Serializer::with_formatter(&mut out, writer))?;
        // The serialiser and the formatter below write nothing but UTF-8.
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
}

struct PythonFormatter<'a> {
    style: &'a Style,
    level: usize,
    /// Whether the innermost list or object has no items so far.
    empty: bool,
}

impl PythonFormatter<'_> {
    fn open<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if !std::mem::take(&mut self.empty) {
            self.new_line(writer)?;
        }
        writer.write_all(bracket)
    }

    fn item<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.style.item_separator.as_bytes())?;
        }
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + io::Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.style.indent {
            Some(spaces) => write!(writer, "\n{:width$}", "", width = spaces * self.level),
            None => Ok(()),
        }
    }
}

impl Formatter for PythonFormatter<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.item(w, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.item(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.style.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(float_repr(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.style.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if c.is_ascii() {
                write!(writer, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// The shortest digits that give back `value`, in Python's notation: an exponent below 1e-4 and
/// from 1e16 on, and always a sign of being a float.
fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(exponent @ -4..16) => {
            let plain = value.to_string();
            let point = if exponent >= 0 && !plain.contains('.') { ".0" } else { "" };
            plain + point
        }
        Ok(exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn one_line() {
        let value = json!({"b": [1, 2.0, null, true], "a": {"x": "<é'\"\n\u{1f}>"}, "e": [], "o": {}});
        let expected = r#"{"b": [1, 2.0, null, true], "a": {"x": "<é'\"\n\u001f>"}, "e": [], "o": {}}"#;
        assert_eq!(Style::new(None).write(&value).unwrap(), expected);
    }

    #[test]
    fn indented() {
        let value = json!({"a": [1, {}], "b": [[]]});
        let expected = "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": [\n    []\n  ]\n}";
        assert_eq!(Style::new(Some(2)).write(&value).unwrap(), expected);
    }

    #[test]
    fn ascii_only() {
        let style = Style { ensure_ascii: true, ..Style::new(None) };
        assert_eq!(style.write(&json!("é🙂")).unwrap(), r#""\u00e9\ud83d\ude42""#);
    }

    #[test]
    fn floats_as_python_prints_them() {
        let expected = [
            (1.0, "1.0"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (123456789.125, "123456789.125"),
        ];
        for (value, text) in expected {
            assert_eq!(float_repr(value), text);
        }
    }
}

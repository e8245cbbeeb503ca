//! The Jinja environment of Hugging Face transformers: its settings, filters and functions.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};

use super::python_json::Style;
use super::sandbox;

/// Indents beyond this are refused: a template is data from elsewhere.
const MAX_INDENT: usize = 64;

/// Bytes of a format of `strftime_now`.
const MAX_FORMAT: usize = 256;

pub(super) fn transformers() -> Environment<'static> {
    let mut environment = Environment::new();
    // Only delimiters can make this fail, and they are the default ones.
    if let Ok(syntax) =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(false).build()
    {
        environment.set_syntax(syntax);
    }
    sandbox::guard(&mut environment);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(python_str);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// Prints a value as Python's `str` does where the two languages differ.
fn python_str(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let name = match (value.is_none(), value.kind()) {
        (true, _) => "None",
        (_, minijinja::value::ValueKind::Bool) if value.is_true() => "True",
        (_, minijinja::value::ValueKind::Bool) => "False",
        _ => {
            if value.as_object().is_some() {
                state.consume_fuel(sandbox::measure(state, value)? / 64)?;
            }
            return escape_formatter(out, state, value);
        }
    };
    Ok(out.write_str(name)?)
}

/// `json.dumps` with transformers' defaults. Unlike Jinja's own filter it escapes no HTML.
fn to_json(state: &State, value: &Value, arguments: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        let message = "tojson of an undefined value";
        return Err(Error::new(ErrorKind::UndefinedError, message));
    }
    let indent: Option<usize> = arguments.get("indent")?;
    if indent.is_some_and(|indent| indent > MAX_INDENT) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: indent is too large"));
    }
    let mut style = Style::new(indent);
    style.ensure_ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    if let Some(separators) = arguments.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|_| Error::new(ErrorKind::InvalidOperation, "tojson: two separators"))?;
        style.item_separator = item;
        style.key_separator = key;
    }
    let sort_keys = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;

    // A value within another is written with up to this many spaces before it.
    let bytes = sandbox::measure(state, value)?;
    state.consume_fuel(bytes.saturating_mul(1 + indent.unwrap_or(0) as u64) / 64)?;
    let failed = |e| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e);
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort_keys {
        json.sort_all_objects();
    }
    style.write(&json).map_err(failed)
}

/// Lets a template refuse a conversation it was not made for.
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time in C's `strftime` notation.
fn strftime_now(format: String) -> Result<String, Error> {
    if format.len() > MAX_FORMAT {
        return Err(Error::new(ErrorKind::InvalidOperation, "strftime_now: the format is too long"));
    }
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(&format, &now)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, "strftime_now").with_source(e))
}

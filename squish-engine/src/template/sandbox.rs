//! Limits within which a checkpoint's template runs: it is a program from elsewhere.
//!
//! The template engine counts steps and the bytes it makes as fuel. It does not count what is inside of nested values, nor
//! what a method makes before it returns; that is counted here, and paid for before it is made. The template runs on a thread of its own, with a stack that bears the
//! deepest value that the fuel pays for.

use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use minijinja::value::{DynObject, Tuple, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::assignments::{KEPT, KEPT_WITHIN};

/// Bytes of a template's source; those of real models have up to twenty thousand.
pub(super) const MOST_SOURCE: usize = 1 << 20;
/// Steps, or 64 bytes made, that every rendering may cost; each byte of the conversation adds one.
const FUEL: u64 = 1_000_000;
/// Blocks, loops and calls within each other.
const MOST_NESTED: usize = 200;
/// Values within a value that is kept, each counted as often as it would be printed.
const MOST_VALUES: u64 = 1 << 18;
/// Bytes that a kept value would be printed as.
const MOST_BYTES: u64 = 64 << 20;
/// Characters of a field of a format.
const MOST_WIDTH: u64 = 1024;
/// Lists within lists.
const MOST_DEPTH: usize = 64;
/// Stack of the thread: 600 bytes for each step that could add a level to a value.
const STACK: usize = 256 << 20;
/// How long a rendering may take, for what the fuel does not see.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sets the limits of an environment, and what a rendering of `input` bytes may cost.
pub(super) fn limit(environment: &mut Environment<'static>, input: usize) {
    environment.set_fuel(Some(FUEL.saturating_add(input as u64)));
    environment.set_recursion_limit(MOST_NESTED);
    // Error reports would print the values that a template had, however large.
    environment.set_debug(false);
}

/// Adds the checks that `assignments` puts around values, and methods that pay before they make.
pub(super) fn guard(environment: &mut Environment<'static>) {
    environment.add_function(KEPT, |state: &State, value: Value| kept(state, value, true));
    environment.add_function(KEPT_WITHIN, |state: &State, value: Value| kept(state, value, false));
    environment.set_unknown_method_callback(method);
}

/// Runs a rendering on a thread of its own; `None` where it did not end in time, and is left to itself.
pub(super) fn run<T: Send + 'static>(
    render: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<Option<T>> {
    let (send, receive) = sync_channel(1);
    let work = move || drop(send.send(render()));
    let thread = std::thread::Builder::new().name("chat-template".into()).stack_size(STACK).spawn(work)?;
    match receive.recv_timeout(PATIENCE) {
        Ok(done) => {
            // What is left to do is to give back memory; a value that a template nested goes with it.
            let _ = thread.join();
            Ok(Some(done))
        }
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(std::io::Error::other("the template engine panicked")),
    }
}

fn refused(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn is_namespace(object: &DynObject) -> bool {
    object.type_name().ends_with("::Namespace")
}

/// What it would take to print a value: the values in it, and their bytes. Each is charged for as it is counted.
///
/// # Errors
/// Where it is deeper or larger than any real one, or the fuel is spent.
pub(super) fn measure(state: &State, value: &Value) -> Result<u64, Error> {
    let (mut values, mut bytes) = (0u64, 0u64);
    let mut open = vec![(value.clone(), 0usize)];
    while let Some((value, depth)) = open.pop() {
        values += 1;
        bytes = bytes.saturating_add(value.as_str().map_or(8, |text| text.len() as u64));
        if depth > MOST_DEPTH || values > MOST_VALUES || bytes > MOST_BYTES {
            return Err(refused("a value is nested too deeply, or too large"));
        }
        if values % 16 == 0 {
            state.consume_fuel(1)?;
        }
        let Some(object) = value.as_object() else { continue };
        if depth > 0 && is_namespace(object) {
            return Err(refused("a namespace within a value"));
        }
        if let ValueKind::Map = value.kind() {
            for (key, value) in object.try_iter_pairs().into_iter().flatten() {
                open.extend([(key, depth + 1), (value, depth + 1)]);
            }
        } else if let ValueKind::Seq | ValueKind::Iterable = value.kind() {
            let left = (MOST_VALUES - values) as usize;
            for item in object.try_iter().into_iter().flatten() {
                if open.len() > left {
                    return Err(refused("a value is too large"));
                }
                open.push((item, depth + 1));
            }
        }
    }
    Ok(bytes)
}

/// A value that a name is given: measured, and a list that is only a promise of its items made into one.
fn kept(state: &State, value: Value, namespaces: bool) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Ok(value) };
    if !namespaces && is_namespace(object) {
        return Err(refused("a namespace within a namespace"));
    }
    measure(state, &value)?;
    let made = object.downcast_ref::<Vec<Value>>().is_some() || object.downcast_ref::<Tuple>().is_some();
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable if !made => {
            Ok(Value::from(object.try_iter().into_iter().flatten().collect::<Vec<_>>()))
        }
        _ => Ok(value),
    }
}

/// Whether a format asks for fields of thousands of characters, or takes their widths from its arguments.
fn is_wide(format: &str) -> bool {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let nested = format
        .split('{')
        .skip(1)
        .any(|field| field.split('}').next().is_some_and(|f| f.ends_with([':', '>', '<', '^', '='])));
    nested || numbers.into_iter().any(|digits| digits.parse().map_or(true, |width: u64| width > MOST_WIDTH))
}

/// Python's methods. What one reads and makes is paid for first.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let mut cost = 0u64;
    // A map is asked for one key, whatever else is in it.
    let subject = std::iter::once(value).filter(|value| value.kind() != ValueKind::Map);
    for value in subject.chain(arguments) {
        cost = cost.saturating_add(match value.as_str() {
            Some(text) => text.len() as u64,
            None => measure(state, value)?,
        });
    }
    let text = |value: Option<&Value>| value.and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    if let Some(subject) = value.as_str() {
        let made = match name {
            "replace" => {
                let (old, new) = (text(arguments.first()), text(arguments.get(1)));
                (subject.matches(&old).count() as u64).saturating_mul(new.len() as u64)
            }
            "join" => {
                let items = arguments.first().and_then(Value::len).unwrap_or(0);
                (items as u64).saturating_mul(subject.len() as u64)
            }
            "format" if is_wide(subject) => return Err(refused("format: a field is too wide")),
            // A list of pieces, each a value.
            "split" | "splitlines" => 32 * subject.len() as u64,
            _ => 0,
        };
        cost = cost.saturating_add(made);
    }
    state.consume_fuel(cost / 64)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

//! The kernels of a preprocessed shader source, and their parameters.
//!
//! Two forms are understood, those that the project's shaders use: `kernel void name(...)`, and a template of it with
//! instances `template [[host_name("name")]] kernel decltype(f<...>) f<...>;`.

/// Where a kernel's argument comes from. The order is that of `Source` in `runtime/fibers.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `[[buffer(i)]]`.
    Buffer(usize),
    /// `[[threadgroup(i)]]`.
    Shared(usize),
    /// Another attribute, by its place in [`BUILTINS`].
    Builtin(usize),
}

/// Attributes of arguments that the hardware fills in.
pub const BUILTINS: [&str; 7] = [
    "thread_position_in_grid",
    "threadgroup_position_in_grid",
    "thread_index_in_threadgroup",
    "threads_per_threadgroup",
    "simdgroups_per_threadgroup",
    "simdgroup_index_in_threadgroup",
    "thread_index_in_simdgroup",
];

/// A kernel's parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What it is bound to.
    pub source: Source,
    /// Whether it points to memory of the device that the kernel may write.
    pub writable: bool,
}

/// A kernel that a pipeline can be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The name it is looked up by.
    pub name: String,
    /// The C++ expression for the function.
    pub function: String,
    /// Its parameters, in order.
    pub parameters: Vec<Parameter>,
}

/// Why a source was not understood.
#[derive(Debug, thiserror::Error)]
#[error("shader source not understood: {0}")]
pub struct Malformed(String);

/// The kernels of a preprocessed source.
///
/// # Errors
/// [`Malformed`] for an attribute or a form that is not known.
pub fn kernels(source: &str) -> Result<Vec<Kernel>, Malformed> {
    let mut families = Vec::new();
    for (at, _) in source.match_indices("kernel void ") {
        let rest = &source[at + "kernel void ".len()..];
        let (name, rest) =
            rest.split_once('(').ok_or_else(|| Malformed("a kernel without parameters".into()))?;
        let list = &rest[..closing(rest).ok_or_else(|| Malformed(format!("{name}: no `)`")))?];
        let parameters = pieces(list)
            .into_iter()
            .map(|text| parameter(name.trim(), text))
            .collect::<Result<Vec<_>, _>>()?;
        let templated = source[..at].trim_end().ends_with('>');
        families.push((name.trim(), templated, parameters));
    }
    let mut found: Vec<Kernel> = Vec::new();
    for (name, _, parameters) in families.iter().filter(|(_, templated, _)| !templated) {
        found.push(Kernel { name: (*name).into(), function: (*name).into(), parameters: parameters.clone() });
    }
    for (at, marker) in source.match_indices("[[host_name(") {
        let rest = &source[at + marker.len()..];
        let refuse = || Malformed(format!("an instance: {}", rest.lines().next().unwrap_or_default()));
        let (name, rest) = rest.split_once(")]]").ok_or_else(refuse)?;
        let (_, rest) = rest.split_once("decltype(").ok_or_else(refuse)?;
        let (function, _) = rest.split_at(closing(rest).ok_or_else(refuse)?);
        let family = function.split('<').next().unwrap_or_default().trim();
        let (_, _, parameters) =
            families.iter().find(|(name, templated, _)| *templated && *name == family).ok_or_else(refuse)?;
        // Adjacent literals are one.
        let name: String = name.split('"').skip(1).step_by(2).collect();
        found.push(Kernel { name, function: function.into(), parameters: parameters.clone() });
    }
    Ok(found)
}

/// The source without `[[...]]`, which C++ would not know.
pub fn without_attributes(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("[[") {
        out.push_str(before);
        rest = after.split_once("]]").map_or("", |(_, rest)| rest);
    }
    out.push_str(rest);
    out
}

/// Where the parenthesis ends that `text` begins in.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

/// The parts between the commas that are in no bracket.
fn pieces(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (i, c) in list.char_indices() {
        match c {
            '(' | '[' | '<' => depth += 1,
            ')' | ']' | '>' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&list[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    found.push(&list[start..]);
    found
}

fn parameter(kernel: &str, text: &str) -> Result<Parameter, Malformed> {
    // Lines that the preprocessor put in between say where the source came from.
    let text: String = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join(" ");
    let refuse = || Malformed(format!("{kernel}: parameter `{}`", text.trim()));
    let (declaration, attribute) = text.split_once("[[").ok_or_else(refuse)?;
    let attribute = attribute.split_once("]]").ok_or_else(refuse)?.0.trim();
    let words: Vec<&str> =
        declaration.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    let name = (*words.last().ok_or_else(refuse)?).to_string();
    let index = |prefix: &str| {
        let inside = attribute.strip_prefix(prefix)?.strip_prefix('(')?.strip_suffix(')')?;
        inside.trim().parse::<usize>().ok()
    };
    let has = |word| words.contains(&word);
    let source = match (index("buffer"), index("threadgroup")) {
        (Some(i), _) if has("device") || has("constant") => Source::Buffer(i),
        (_, Some(i)) if has("threadgroup") => Source::Shared(i),
        (None, None) => Source::Builtin(BUILTINS.iter().position(|b| *b == attribute).ok_or_else(refuse)?),
        _ => return Err(refuse()),
    };
    Ok(Parameter { name, source, writable: has("device") && !has("const") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_kernels_and_instances() {
        let source = r#"
            kernel void scale(device const float* x [[buffer(0)]], device float* y [[buffer(2)]],
                              constant uint& n [[buffer(1)]], uint i [[thread_position_in_grid]]) {}
            template <typename T, uint N> kernel void twice(device T* y [[buffer(0)]],
                threadgroup float* room [[threadgroup(0)]]) { y[0] = foo(y[0]); }
            template [[host_name("twice_" "f32")]] kernel decltype(twice<float, 2>) twice<float, 2>;
        "#;
        let kernels = kernels(source).unwrap();
        assert_eq!(kernels.iter().map(|k| k.name.as_str()).collect::<Vec<_>>(), ["scale", "twice_f32"]);
        assert_eq!(kernels[1].function, "twice<float, 2>");
        let writable = |k: &Kernel| k.parameters.iter().map(|p| p.writable).collect::<Vec<_>>();
        assert_eq!(writable(&kernels[0]), [false, true, false, false]);
        assert_eq!(kernels[0].parameters[1].source, Source::Buffer(2));
        assert_eq!(kernels[1].parameters[1].source, Source::Shared(0));
        assert!(!without_attributes(source).contains("[["));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for source in [
            "kernel void f(device float* x) {}",
            "kernel void f(device float* x [[stage_in]]) {}",
            "kernel void f(float x [[buffer(0)]]) {}",
            "template [[host_name(\"f\")]] kernel decltype(g<1>) g<1>;",
            "kernel void f(",
        ] {
            assert!(kernels(source).is_err(), "{source}");
        }
    }
}

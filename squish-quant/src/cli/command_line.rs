//! How the tool was called, for the certificate.

use std::path::Path;

/// The arguments of this process, `squish-quant` first. Paths are shortened to their last component, so that the same
/// work in another directory is described by the same words; options in `omit` are left out with their values.
pub fn command_line(omit: &[&str]) -> String {
    describe(std::env::args().skip(1), omit)
}

fn describe(args: impl Iterator<Item = String>, omit: &[&str]) -> String {
    let mut words = vec!["squish-quant".to_string()];
    let mut args = args;
    while let Some(arg) = args.next() {
        let (option, value) = match arg.split_once('=') {
            Some((option, value)) if arg.starts_with("--") => (option, Some(value)),
            _ => (arg.as_str(), None),
        };
        if omit.contains(&option) {
            if value.is_none() {
                args.next();
            }
            continue;
        }
        words.push(match value {
            Some(value) => quote(format!("{option}={}", shorten(value))),
            None => quote(shorten(&arg)),
        });
    }
    words.join(" ")
}

/// The last component of a path; anything else as it is.
fn shorten(arg: &str) -> String {
    let path = Path::new(arg);
    match path.file_name() {
        Some(name) if path.components().count() > 1 => name.to_string_lossy().into_owned(),
        _ => arg.into(),
    }
}

/// A word as a shell reads it.
fn quote(word: String) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=.,:+/%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shortened_and_options_left_out() {
        let args = "compress ../models/tiny --out /tmp/x --recipe sqint2 --calibrate=a/b/text.txt --seed 1";
        let args = args.split(' ').map(String::from).chain(["--text".into(), "it's/my text".into()]);
        assert_eq!(
            describe(args, &["--out"]),
            "squish-quant compress tiny --recipe sqint2 --calibrate=text.txt --seed 1 --text 'my text'"
        );
        let args = ["eval", "./m/", "--out=y", "it's"].map(String::from);
        assert_eq!(describe(args.into_iter(), &["--out"]), r"squish-quant eval m 'it'\''s'");
    }
}

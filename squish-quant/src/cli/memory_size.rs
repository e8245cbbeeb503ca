//! Sizes of memory as people write them.

/// Units, longest names first.
const UNITS: &[(&str, f64)] = &[
    ("KiB", 1024.0),
    ("MiB", 1048576.0),
    ("GiB", 1073741824.0),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("K", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("B", 1.0),
    ("", 1.0),
];

/// A number of bytes, or a number and a unit, with or without a space between: `4GB`, `3.5 GiB`.
pub fn parse(text: &str) -> Result<usize, String> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((lower.strip_suffix(&name.to_ascii_lowercase())?, unit)))
        .expect("the last unit ends every text");
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * unit < 1e15 => Ok((number * unit) as usize),
        _ => Err("expected a size of memory such as 4GB, 3500MB or 3.5GiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("4GB", 4_000_000_000),
            ("4 gb", 4_000_000_000),
            ("8g", 8_000_000_000),
            ("3.5GiB", 3_758_096_384),
            ("512MiB", 536_870_912),
            ("1500K", 1_500_000),
            ("12345", 12345),
            ("7 B", 7),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1GB", "0", "4TB", "nan", "inf", "1e300", "4 G B"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}

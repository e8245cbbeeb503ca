//! What the system says of itself.

use std::{path::Path, process::Command};

/// Bytes of memory: all of it, and what is available; each `None` where the system does not say.
pub fn memory() -> (Option<u64>, Option<u64>) {
    if cfg!(target_os = "macos") {
        let output = Command::new("/usr/sbin/sysctl").args(["-n", "hw.memsize"]).output().ok();
        let text = output.and_then(|output| String::from_utf8(output.stdout).ok());
        return (text.and_then(|text| text.trim().parse().ok()), None);
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&text, "MemTotal:"), meminfo(&text, "MemAvailable:"))
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that are free where a directory is or would be.
pub fn disk_free(dir: &Path) -> Option<u64> {
    fs4::available_space(existing(dir)).ok()
}

/// Why nothing can be written where a directory is or would be.
pub fn unwritable(dir: &Path) -> Option<std::io::Error> {
    tempfile::tempfile_in(existing(dir)).err()
}

/// The nearest of it and the folders around it that is there.
fn existing(dir: &Path) -> &Path {
    let there = |dir: &&Path| dir.exists();
    dir.ancestors().find(there).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_meminfo() {
        let text = "MemTotal:       16303428 kB\nMemFree:  12 kB\nMemAvailable:    9000 kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(16_303_428 * 1024));
        assert_eq!(meminfo(text, "MemAvailable:"), Some(9000 * 1024));
        assert_eq!(meminfo("MemTotal: 99999999999999999 kB", "MemTotal:"), None);
        assert_eq!(meminfo("", "MemTotal:"), None);
    }

    #[test]
    fn a_directory_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("a/b");
        assert_eq!(existing(&absent), dir.path());
        assert!(disk_free(&absent).is_some() && unwritable(&absent).is_none());
        std::fs::write(dir.path().join("a"), "").unwrap();
        assert!(unwritable(&absent).is_some());
    }
}

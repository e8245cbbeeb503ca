//! Zip archives: the central directory and the members, within bounds.

use std::io::Read;

/// Members that are read at most.
const MOST_MEMBERS: usize = 65_536;
/// Bytes of one member that are inflated at most.
pub const MOST_INFLATED: usize = 64 << 20;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its name, made printable.
    pub name: String,
    /// Compression method: 0 stored, 8 deflated.
    pub method: u16,
    /// Whether it is encrypted.
    pub encrypted: bool,
    compressed: usize,
    header: usize,
}

/// An archive over the bytes of a file.
#[derive(Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    /// The members that the central directory names.
    pub members: Vec<Member>,
    /// Whether the directory was read to its end.
    pub complete: bool,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize)
}

/// Where the end-of-central-directory record begins, if the file has one whose directory is where it says (archives may
/// have bytes before them, so places are taken relative to the record).
fn end_record(bytes: &[u8]) -> Option<(usize, usize)> {
    let from = bytes.len().saturating_sub(22 + 65_535);
    let tail = &bytes[from..];
    let candidates = tail.windows(4).enumerate().rev().filter(|(_, w)| *w == b"PK\x05\x06");
    candidates.map(|(i, _)| from + i).find_map(|end| {
        let size = u32_at(bytes, end + 12)?;
        let start = end.checked_sub(size)?;
        let offset = u32_at(bytes, end + 16)?;
        let empty = size == 0 && end == 0 && bytes.len() == 22;
        let directory = bytes.get(start..)?.starts_with(b"PK\x01\x02");
        (empty || directory && offset <= start).then_some((start, start.saturating_sub(offset)))
    })
}

impl<'a> Archive<'a> {
    /// The archive that ends these bytes, or begins them without an end; `None` where they are no archive.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let mut archive = Self { bytes, members: Vec::new(), complete: false };
        let Some((mut at, shift)) = end_record(bytes) else {
            return bytes.starts_with(b"PK\x03\x04").then(|| {
                archive.by_local_headers();
                archive
            });
        };
        while bytes.get(at..).is_some_and(|rest| rest.starts_with(b"PK\x01\x02")) {
            if archive.members.len() >= MOST_MEMBERS {
                return Some(archive);
            }
            let Some((member, next)) = central(bytes, at, shift) else { return Some(archive) };
            archive.members.push(member);
            at = next;
        }
        archive.complete = true;
        Some(archive)
    }

    /// Truncated archives have no directory: the local headers are followed as far as they go.
    fn by_local_headers(&mut self) {
        let mut at = 0;
        while self.members.len() < MOST_MEMBERS
            && self.bytes.get(at..).is_some_and(|rest| rest.starts_with(b"PK\x03\x04"))
        {
            let Some((member, next)) = local(self.bytes, at) else { return };
            self.members.push(member);
            at = next;
        }
    }

    /// The beginning of a member's contents, at most [`MOST_INFLATED`] bytes; `None` where it cannot be read.
    pub fn contents(&self, member: &Member) -> Option<Vec<u8>> {
        let at = member.header;
        if member.encrypted || !self.bytes.get(at..)?.starts_with(b"PK\x03\x04") {
            return None;
        }
        let skip = 30 + usize::from(u16_at(self.bytes, at + 26)?) + usize::from(u16_at(self.bytes, at + 28)?);
        let start = at.checked_add(skip)?;
        let end = start.saturating_add(member.compressed).min(self.bytes.len());
        // A stream with its sizes after it: up to wherever its own end is.
        let end = if member.compressed == 0 { self.bytes.len() } else { end };
        let data = self.bytes.get(start..end)?;
        match member.method {
            0 => Some(data[..data.len().min(MOST_INFLATED)].to_vec()),
            8 => {
                let mut inflated = Vec::new();
                let outcome = flate2::read::DeflateDecoder::new(data)
                    .take(MOST_INFLATED as u64)
                    .read_to_end(&mut inflated);
                (outcome.is_ok() || !inflated.is_empty()).then_some(inflated)
            }
            _ => None,
        }
    }
}

fn central(bytes: &[u8], at: usize, shift: usize) -> Option<(Member, usize)> {
    let [name, extra, comment] = [28, 30, 32].map(|o| u16_at(bytes, at + o).map(usize::from));
    let (name, extra, comment) = (name?, extra?, comment?);
    let text = bytes.get(at + 46..at + 46 + name)?;
    let member = Member {
        name: super::printable(&String::from_utf8_lossy(text)),
        method: u16_at(bytes, at + 10)?,
        encrypted: u16_at(bytes, at + 8)? & 1 == 1,
        compressed: u32_at(bytes, at + 20)?,
        header: u32_at(bytes, at + 42)?.checked_add(shift)?,
    };
    Some((member, at + 46 + name + extra + comment))
}

fn local(bytes: &[u8], at: usize) -> Option<(Member, usize)> {
    let (name, extra) = (usize::from(u16_at(bytes, at + 26)?), usize::from(u16_at(bytes, at + 28)?));
    let text = bytes.get(at + 30..at + 30 + name)?;
    let compressed = u32_at(bytes, at + 18)?;
    let member = Member {
        name: super::printable(&String::from_utf8_lossy(text)),
        method: u16_at(bytes, at + 8)?,
        encrypted: u16_at(bytes, at + 6)? & 1 == 1,
        compressed,
        header: at,
    };
    Some((member, at.checked_add(30 + name + extra)?.checked_add(compressed)?))
}

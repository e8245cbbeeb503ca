//! Pickle streams: read as data, opcode by opcode, without building or importing anything.

/// What a stream of opcodes would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pickle {
    /// The globals it would import, `module.name`, in order and without repetition.
    pub globals: Vec<String>,
    /// Whether it calls what it imports (REDUCE, INST, OBJ, NEWOBJ, BUILD).
    pub calls: bool,
    /// Whether the stream came to its STOP.
    pub complete: bool,
    /// Opcodes read.
    pub opcodes: usize,
}

/// Opcodes that are read at most; a longer stream counts as incomplete.
const MOST_OPCODES: usize = 4_000_000;
/// Globals that are reported at most.
const MOST_GLOBALS: usize = 64;
/// Memoised strings that are remembered at most.
const MOST_MEMO: usize = 65_536;

impl Pickle {
    /// Reads the stream that `bytes` begin with; what follows its STOP is not looked at. Never fails: a stream that
    /// breaks off, or an unknown opcode, leaves [`complete`](Self::complete) false.
    pub fn read(bytes: &[u8]) -> Self {
        let mut reader =
            Reader { bytes, at: 0, pickle: Self::default(), recent: [None, None], memo: Vec::new() };
        reader.run();
        reader.pickle
    }

    /// Whether bytes are a pickle: they begin with a protocol mark or a frame, or they run as one up to STOP and import
    /// or call something. `named` lowers the bar for files whose name says pickle: then running up to STOP is enough.
    pub fn detect(bytes: &[u8], named: bool) -> Option<Self> {
        let marked = matches!(bytes, [0x80, 1..=5, ..]);
        let plausible = marked || bytes.first().is_some_and(|b| opcode(*b).is_some());
        if !plausible {
            return None;
        }
        let pickle = Self::read(bytes);
        let active = !pickle.globals.is_empty() || pickle.calls;
        let found = marked && (pickle.opcodes >= 2 || bytes.len() <= 2 || named)
            || pickle.complete && (active || named)
            // Broken off after an import with something done on it: a protocol-0 stream that was cut.
            || !pickle.complete && !pickle.globals.is_empty() && pickle.opcodes >= 4 && pickle.calls
            || named && !pickle.globals.is_empty();
        found.then_some(pickle)
    }
}

/// How an opcode's argument is laid out.
#[derive(Clone, Copy)]
enum Argument {
    None,
    /// So many bytes.
    Fixed(usize),
    /// Up to a line feed.
    Line,
    /// Two lines.
    TwoLines,
    /// A little-endian length of so many bytes, and the bytes.
    Counted(usize),
}

/// The argument of an opcode; `None` for bytes that are none.
fn opcode(byte: u8) -> Option<Argument> {
    use Argument::{Counted, Fixed, Line, None as Nothing, TwoLines};
    Some(match byte {
        b'('
        | b'.'
        | b'0'
        | b'1'
        | b'2'
        | b'N'
        | b'Q'
        | b'R'
        | b'a'
        | b'b'
        | b'd'
        | b'}'
        | b'e'
        | b'l'
        | b']'
        | b'o'
        | b's'
        | b't'
        | b')'
        | b'u'
        | 0x81
        | 0x85..=0x89
        | 0x8f..=0x94
        | 0x97
        | 0x98 => Nothing,
        b'K' | b'h' | b'q' | 0x80 | 0x82 => Fixed(1),
        b'M' | 0x83 => Fixed(2),
        b'J' | b'j' | b'r' | 0x84 => Fixed(4),
        b'G' | 0x95 => Fixed(8),
        b'F' | b'I' | b'L' | b'P' | b'S' | b'V' | b'g' | b'p' => Line,
        b'c' | b'i' => TwoLines,
        b'U' | b'C' | 0x8a | 0x8c => Counted(1),
        b'T' | b'X' | b'B' | 0x8b => Counted(4),
        0x8d | 0x8e | 0x96 => Counted(8),
        _ => return None,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    pickle: Pickle,
    /// The last two strings that were pushed: what STACK_GLOBAL takes for module and name.
    recent: [Option<&'a [u8]>; 2],
    memo: Vec<(u32, &'a [u8])>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let length = rest.iter().position(|b| *b == b'\n')?;
        self.at += length + 1;
        Some(&rest[..length])
    }

    fn run(&mut self) {
        while self.step() == Some(false) && self.pickle.opcodes < MOST_OPCODES {}
    }

    /// One opcode: `Some(true)` at STOP, `None` where the stream breaks.
    fn step(&mut self) -> Option<bool> {
        let code = self.take(1)?[0];
        let argument = match opcode(code)? {
            Argument::None => &[][..],
            Argument::Fixed(count) => self.take(count)?,
            Argument::Line => self.line()?,
            Argument::Counted(width) => {
                let length = self
                    .take(width)?
                    .iter()
                    .rev()
                    .try_fold(0usize, |sum, b| Some(sum.checked_mul(256)? + usize::from(*b)))?;
                self.take(length)?
            }
            Argument::TwoLines => {
                let (module, name) = (self.line()?, self.line()?);
                if !is_name(module) || !is_name(name) {
                    return None;
                }
                self.import(module, name);
                &[]
            }
        };
        self.pickle.opcodes += 1;
        match code {
            b'.' => {
                self.pickle.complete = true;
                return Some(true);
            }
            b'S' | b'V' | b'U' | b'T' | b'X' | 0x8c | 0x8d => {
                let quoted = argument.len() >= 2 && code == b'S' && matches!(argument[0], b'\'' | b'"');
                let text = if quoted { &argument[1..argument.len() - 1] } else { argument };
                self.push(text);
            }
            // Memoising: what was pushed last is the likeliest.
            0x94 => self.remember(self.memo.len() as u32),
            b'q' | b'r' => self.remember(number(argument)),
            b'p' => self.remember(decimal(argument)),
            b'h' | b'j' => self.recall(number(argument)),
            b'g' => self.recall(decimal(argument)),
            0x93 => {
                // Without anything to take its names from the stream breaks here, as in any reader.
                if self.recent[0].is_none() && !self.pickle.calls {
                    return None;
                }
                let [module, name] = self.recent;
                self.import(module.unwrap_or(b"?"), name.unwrap_or(b"?"));
            }
            // Extension registry: an import by number.
            0x82..=0x84 => self.import(b"copyreg", b"extension"),
            b'R' | b'b' | b'i' | b'o' | 0x81 | 0x92 => self.pickle.calls = true,
            _ => {}
        }
        Some(false)
    }

    fn push(&mut self, text: &'a [u8]) {
        self.recent = [self.recent[1], Some(text)];
    }

    fn remember(&mut self, slot: u32) {
        if self.memo.len() < MOST_MEMO {
            self.memo.push((slot, self.recent[1].unwrap_or(b"?")));
        }
    }

    fn recall(&mut self, slot: u32) {
        // Slots are mostly numbered in order, so the place is tried before the search.
        let direct = self.memo.get(slot as usize).filter(|(s, _)| *s == slot);
        if let Some((_, text)) = direct.or_else(|| self.memo.iter().rev().take(256).find(|(s, _)| *s == slot))
        {
            let text = *text;
            self.push(text);
        }
    }

    fn import(&mut self, module: &[u8], name: &[u8]) {
        let short = |bytes: &[u8]| super::printable(&String::from_utf8_lossy(&bytes[..bytes.len().min(128)]));
        let global = format!("{}.{}", short(module), short(name));
        if self.pickle.globals.len() < MOST_GLOBALS && !self.pickle.globals.contains(&global) {
            self.pickle.globals.push(global);
        }
    }
}

/// Module and attribute names are dotted identifiers.
fn is_name(text: &[u8]) -> bool {
    !text.is_empty()
        && text.len() <= 1024
        && text.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
        || text.iter().any(|b| !b.is_ascii()) && !text.contains(&b' ')
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, b| sum << 8 | u32::from(*b))
}

fn decimal(bytes: &[u8]) -> u32 {
    std::str::from_utf8(bytes).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(u32::MAX)
}

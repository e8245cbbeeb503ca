//! A small hub on the loopback interface: the addresses, redirects, etags, ranges and uploads of the real one, and its failures.

// Each test uses a part of this.
#![allow(dead_code)]

pub mod upload;

use sha2::Digest;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};
use upload::Uploads;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What it does wrong.
#[derive(Default)]
pub struct Faults {
    /// Answers to give instead of files, first to last.
    pub statuses: Vec<u16>,
    /// Seconds of `Retry-After` beside them.
    pub retry_after: Option<u64>,
    /// Bytes of a body after which the connection is cut, first to last.
    pub cuts: Vec<usize>,
    /// Bodies are other bytes of the same length.
    pub corrupt: bool,
    /// Ranges are ignored: the whole file each time.
    pub ignore_ranges: bool,
    /// The token that is demanded.
    pub token: Option<String>,
    /// The repository is not there.
    pub missing: bool,
    /// A pause before each piece of a body.
    pub slow: Option<Duration>,
    /// So many requests get no answer, and an open connection.
    pub hang: usize,
    /// What goes wrong when something is sent here.
    pub uploads: Uploads,
}

pub type Files = BTreeMap<String, Vec<u8>>;

/// Names and contents.
pub type Named<'a> = Vec<(&'a str, Vec<u8>)>;

/// What the hub holds.
#[derive(Default)]
pub struct State {
    /// Files by repository; those of `*` are in every repository that is not there itself.
    pub repositories: BTreeMap<String, Files>,
    /// The large-file storage, by SHA-256.
    pub stored: BTreeMap<String, Vec<u8>>,
    /// Parts that have arrived, by SHA-256 and number.
    parts: BTreeMap<(String, usize), Vec<u8>>,
}

impl State {
    fn files(&self, repository: &str) -> Option<&Files> {
        self.repositories.get(repository).or_else(|| self.repositories.get("*"))
    }

    /// A large file by its digest.
    fn large(&self, sha256_of: &str) -> Option<Vec<u8>> {
        let mut all = self.repositories.values().flat_map(|files| files.values()).chain(self.stored.values());
        all.find(|bytes| sha256(bytes) == sha256_of).cloned()
    }
}

#[derive(Clone)]
pub struct Standin {
    pub address: String,
    pub faults: Arc<Mutex<Faults>>,
    /// Request lines, with the range.
    pub log: Arc<Mutex<Vec<String>>>,
    pub state: Arc<Mutex<State>>,
}

/// A request, read to its end but for the body.
struct Request {
    method: String,
    path: String,
    range: Option<(usize, Option<usize>)>,
    token: Option<String>,
    length: usize,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn git_blob(bytes: &[u8]) -> String {
    let mut sha1 = sha1::Sha1::new();
    sha1.update(format!("blob {}\0", bytes.len()));
    sha1.update(bytes);
    hex(&sha1.finalize())
}

impl Standin {
    /// A hub on which every repository holds these files.
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        Self::with(&[("*", files.to_vec())])
    }

    /// A hub with these repositories.
    pub fn with(repositories: &[(&str, Named)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files =
            |files: &[(&str, Vec<u8>)]| files.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
        let repositories = repositories.iter().map(|(name, list)| (name.to_string(), files(list))).collect();
        let state = Arc::new(Mutex::new(State { repositories, ..State::default() }));
        let standin = Self { address, faults: Arc::default(), log: Arc::default(), state };
        let shared = standin.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        standin
    }

    /// An address where nobody listens.
    pub fn nowhere() -> Self {
        let address = "http://127.0.0.1:1".into();
        Self { address, faults: Arc::default(), log: Arc::default(), state: Arc::default() }
    }

    /// Storage is another host, as with the real hub; `localhost` stands for it.
    fn storage(&self) -> String {
        self.address.replace("127.0.0.1", "localhost")
    }

    /// The requests so far that begin so.
    pub fn asked(&self, prefix: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.starts_with(prefix)).count()
    }

    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let request = read_head(&mut reader)?;
        let Request { method, path, range, token, .. } = &request;
        let first = range.map(|(first, _)| first);
        let method_of = if method == "GET" { String::new() } else { format!("{method} ") };
        self.log.lock().unwrap().push(format!("{method_of}{path} {first:?} {token:?}"));
        let (wanted, missing, hang) = {
            let mut f = self.faults.lock().unwrap();
            let hang = f.hang > 0;
            f.hang -= usize::from(hang);
            (f.token.clone(), f.missing, hang)
        };
        if hang {
            std::thread::sleep(Duration::from_secs(20));
            return Ok(());
        }
        if method != "GET" {
            return self.receive(stream, reader, &request);
        }
        if let Some(address) = path.strip_prefix("/storage/") {
            let body = self.state.lock().unwrap().large(address).unwrap_or_default();
            return send(stream, body, *range, &self.faults);
        }
        if wanted.is_some() && wanted != *token {
            return reply(&mut stream, 401, "", b"");
        }
        let repository = path.trim_start_matches("/api/models/").trim_start_matches('/');
        let repository = repository.split('/').take(2).collect::<Vec<_>>().join("/");
        let files = self.state.lock().unwrap().files(&repository).cloned();
        let Some(files) = files.filter(|_| !missing) else { return reply(&mut stream, 404, "", b"") };
        if path.starts_with("/api/models/") {
            let siblings: Vec<_> = files.iter().map(|(name, bytes)| sibling(name, bytes)).collect();
            let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return reply(&mut stream, 200, "", body.as_bytes());
        }
        let name = path.split(COMMIT).nth(1).unwrap_or_default().trim_start_matches('/');
        let Some(bytes) = files.get(name) else { return reply(&mut stream, 404, "", b"") };
        if name.ends_with(".safetensors") {
            let location = format!("location: {}/storage/{}\r\n", self.storage(), sha256(bytes));
            return reply(&mut stream, 302, &location, b"");
        }
        send(stream, bytes.clone(), *range, &self.faults)
    }
}

/// A file in the list of a repository.
fn sibling(name: &str, bytes: &[u8]) -> serde_json::Value {
    let mut file = serde_json::json!({ "rfilename": name, "size": bytes.len(), "blobId": git_blob(bytes) });
    if name.ends_with(".safetensors") {
        file["lfs"] = serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len() });
    }
    file
}

fn read_head(reader: &mut impl BufRead) -> std::io::Result<Request> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, path, range: None, token: None, length: 0 };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { return Ok(request) };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let (first, last) = value.trim_start_matches("bytes=").split_once('-').unwrap_or_default();
                request.range = first.parse().ok().map(|first| (first, last.parse().ok()));
            }
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            "content-length" => request.length = value.parse().unwrap_or(0),
            // The real storage takes no request of unknown length.
            "transfer-encoding" => return Err(std::io::Error::other("a length is required")),
            _ => {}
        }
    }
}

fn reply(stream: &mut TcpStream, status: u16, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    )?;
    stream.write_all(body)
}

fn send(
    mut stream: TcpStream,
    mut body: Vec<u8>,
    range: Option<(usize, Option<usize>)>,
    faults: &Mutex<Faults>,
) -> std::io::Result<()> {
    let (status, after, cut, slow, range) = {
        let mut faults = faults.lock().unwrap();
        let status = (!faults.statuses.is_empty()).then(|| faults.statuses.remove(0));
        let cut = (status.is_none() && !faults.cuts.is_empty()).then(|| faults.cuts.remove(0));
        if faults.corrupt {
            body.iter_mut().for_each(|b| *b ^= 1);
        }
        (status, faults.retry_after, cut, faults.slow, range.filter(|_| !faults.ignore_ranges))
    };
    if let Some(status) = status {
        let header = after.map(|s| format!("retry-after: {s}\r\n")).unwrap_or_default();
        return reply(&mut stream, status, &header, b"");
    }
    let total = body.len();
    let (first, last) = range.map_or((0, None), |(first, last)| (first, last));
    if range.is_some() && first >= total {
        return reply(&mut stream, 416, "", b"");
    }
    let rest = &body[first..last.map_or(total, |last| (last + 1).min(total))];
    let status = if range.is_some() { 206 } else { 200 };
    write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", rest.len())?;
    if range.is_some() {
        write!(stream, "content-range: bytes {first}-{}/{total}\r\n", first + rest.len() - 1)?;
    }
    write!(stream, "\r\n")?;
    let sent = cut.map_or(rest.len(), |cut| cut.min(rest.len()));
    for piece in rest[..sent].chunks(1024) {
        if let Some(slow) = slow {
            std::thread::sleep(slow);
        }
        stream.write_all(piece)?;
    }
    stream.flush()
}

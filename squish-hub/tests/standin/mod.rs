//! A small hub on the loopback interface: the addresses, redirects, etags and ranges of the real one, and its failures.

// Each test uses a part of this.
#![allow(dead_code)]

use sha2::Digest;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

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
}

pub struct Standin {
    pub address: String,
    pub faults: Arc<Mutex<Faults>>,
    /// Request lines, with the range.
    pub log: Arc<Mutex<Vec<String>>>,
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
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (faults, log) = (Arc::new(Mutex::new(Faults::default())), Arc::new(Mutex::new(Vec::new())));
        // Storage is another host, as with the real hub; `localhost` stands for it.
        let storage = address.replace("127.0.0.1", "localhost");
        let shared = Arc::new((files, storage, faults.clone(), log.clone()));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let (files, storage, faults, log) = &*shared;
                    let _ = serve(stream, files, storage, faults, log);
                });
            }
        });
        Self { address, faults, log }
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

fn serve(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    storage: &str,
    faults: &Mutex<Faults>,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let (mut line, mut range, mut token) = (String::new(), None, None);
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut line)?;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                range = value.strip_prefix("bytes=").and_then(|v| v.strip_suffix('-')?.parse::<usize>().ok())
            }
            "authorization" => token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => {}
        }
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(format!("{path} {range:?} {token:?}"));
    if let Some(address) = path.strip_prefix("/storage/") {
        let body = files.values().find(|b| sha256(b) == address).cloned().unwrap_or_default();
        return send(stream, body, range, faults);
    }
    let (wanted, missing) = {
        let f = faults.lock().unwrap();
        (f.token.clone(), f.missing)
    };
    if wanted.is_some() && wanted != token {
        return reply(&mut stream, 401, "", b"");
    }
    if missing {
        return reply(&mut stream, 404, "", b"");
    }
    if path.starts_with("/api/models/") {
        let siblings: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                let mut file =
                    serde_json::json!({ "rfilename": name, "size": bytes.len(), "blobId": git_blob(bytes) });
                if name.ends_with(".safetensors") {
                    file["lfs"] = serde_json::json!({ "sha256": sha256(bytes), "size": bytes.len() });
                }
                file
            })
            .collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return reply(&mut stream, 200, "", body.as_bytes());
    }
    let name = path.split(COMMIT).nth(1).unwrap_or_default().trim_start_matches('/');
    let Some(bytes) = files.get(name) else { return reply(&mut stream, 404, "", b"") };
    if name.ends_with(".safetensors") {
        let location = format!("location: {storage}/storage/{}\r\n", sha256(bytes));
        return reply(&mut stream, 302, &location, b"");
    }
    send(stream, bytes.clone(), range, faults)
}

fn send(
    mut stream: TcpStream,
    mut body: Vec<u8>,
    range: Option<usize>,
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
    let first = range.unwrap_or(0);
    if range.is_some() && first >= total {
        return reply(&mut stream, 416, "", b"");
    }
    let rest = &body[first..];
    let status = if range.is_some() { 206 } else { 200 };
    write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", rest.len())?;
    if range.is_some() {
        write!(stream, "content-range: bytes {first}-{}/{total}\r\n", total - 1)?;
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

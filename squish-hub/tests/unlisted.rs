//! Hubs that give files and no list of them: pulled all the same, with a warning, and judged by the bytes.

use sha2::Digest;
use squish_hub::{Error, Hub, hub::Transfer};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    time::Duration,
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn weights(data: &[u8]) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, data.len());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// A hub without an API; returns its address.
fn serve(files: &[(&str, Vec<u8>)], api: u16) -> String {
    failing(files, api, &[])
}

/// As [`serve`], with files for which another status is answered, as often as they are named.
fn failing(files: &[(&str, Vec<u8>)], api: u16, statuses: &[(&str, u16)]) -> String {
    let mut statuses: Vec<_> = statuses.iter().map(|(name, status)| (name.to_string(), *status)).collect();
    let files: BTreeMap<String, Vec<u8>> = files.iter().map(|(n, b)| (n.to_string(), b.clone())).collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream, &files, api, &mut statuses);
        }
    });
    address
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    api: u16,
    statuses: &mut Vec<(String, u16)>,
) -> std::io::Result<()> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut line)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let (method, path) = line.split_once(' ').unwrap_or_default();
    let path = path.split(' ').next().unwrap_or_default();
    let file = path.split_once("/resolve/").and_then(|(_, rest)| files.get(rest.split_once('/')?.1));
    let failing = statuses.iter().position(|(name, _)| path.ends_with(name));
    let status = if path.starts_with("/api/") {
        api
    } else if let Some(at) = failing {
        statuses.remove(at).1
    } else if file.is_some() {
        200
    } else {
        404
    };
    let body = file.map_or(&[][..], Vec::as_slice);
    let etag: String = sha2::Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    write!(stream, "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len())?;
    write!(stream, "x-repo-commit: {COMMIT}\r\netag: \"{etag}\"\r\n\r\n")?;
    if method == "GET" { stream.write_all(body) } else { Ok(()) }
}

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Transfer for Warnings {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.into());
    }
}

fn hub(address: &str, cache: &std::path::Path) -> Hub {
    let mut hub = Hub { reserve: 0, ..Hub::new(address, cache) };
    hub.timing.attempts = 2;
    hub.timing.pause = Duration::from_millis(1);
    hub
}

#[test]
fn what_is_not_listed_is_asked_for_by_name() {
    let index = r#"{"weight_map": {"w": "model-00001-of-00001.safetensors", "x": "../../etc/passwd"}}"#;
    // 200: an answer that is no list, as proxies give it.
    for status in [200, 401, 403, 404, 503] {
        for sharded in [false, true] {
            let mut files = vec![("config.json", b"{}".to_vec()), ("tokenizer.json", b"{}".to_vec())];
            if sharded {
                files.push(("model.safetensors.index.json", index.into()));
                files.push(("model-00001-of-00001.safetensors", weights(&[1; 64])));
            } else {
                files.push(("model.safetensors", weights(&[2; 64])));
            }
            let (cache, warnings) = (tempfile::tempdir().unwrap(), Warnings::default());
            let pulled =
                hub(&serve(&files, status), cache.path()).pull("org/name", "main", &warnings).unwrap();
            for (name, bytes) in &files {
                assert_eq!(&std::fs::read(pulled.dir.join(name)).unwrap(), bytes, "{status} {name}");
            }
            let warnings = warnings.0.into_inner().unwrap();
            assert!(warnings.len() == 1 && warnings[0].contains("no list of files"), "{warnings:?}");
        }
    }
}

#[test]
fn failures_are_told_from_what_is_not_there() {
    let index = r#"{"weight_map": {"w": "a.safetensors", "x": "b.safetensors"}}"#;
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index.into()),
        ("a.safetensors", weights(&[1; 64])),
        ("b.safetensors", weights(&[2; 64])),
    ];
    let pull = |files: &[_], statuses: &[_]| {
        let cache = tempfile::tempdir().unwrap();
        let hub = hub(&failing(files, 403, statuses), cache.path());
        let pulled = hub.pull("org/name", "main", &Warnings::default());
        pulled.map(|pulled| pulled.dir.join("tokenizer.json").is_file())
    };
    let busy = ("tokenizer.json", 503);
    assert!(pull(&files, &[busy]).unwrap());
    assert!(matches!(pull(&files, &[busy, busy]), Err(Error::Hub { .. })));
    assert!(matches!(pull(&files[..4], &[]), Err(Error::NotFound { .. })));
}

#[test]
fn the_second_layer_still_refuses() {
    let evil = b"\x80\x02cposix\nsystem\n.".to_vec();
    for (name, refused) in [("tokenizer.json", "posix.system"), ("model.safetensors", "posix.system")] {
        let mut files = vec![
            ("config.json", b"{}".to_vec()),
            ("tokenizer.json", b"{}".to_vec()),
            ("model.safetensors", weights(&[3; 64])),
        ];
        files.iter_mut().filter(|(n, _)| *n == name).for_each(|(_, bytes)| *bytes = evil.clone());
        let cache = tempfile::tempdir().unwrap();
        let error = hub(&serve(&files, 403), cache.path())
            .pull("org/name", "main", &Warnings::default())
            .unwrap_err();
        assert!(matches!(error, Error::Unsafe { .. }) && error.to_string().contains(refused), "{error}");
        assert!(hub("http://127.0.0.1:9", cache.path()).cached("org/name", "main").is_none());
    }
}

#[test]
fn where_nothing_is_to_be_had_the_first_error_stands() {
    let cache = tempfile::tempdir().unwrap();
    let pull = |address: &str| {
        hub(address, cache.path()).pull("org/name", "main", &Warnings::default()).unwrap_err()
    };
    assert!(matches!(pull(&serve(&[], 401)), Error::Unauthorised { .. }));
    assert!(matches!(pull(&serve(&[], 404)), Error::NotFound { .. }));
    // Weights in pickles only: nothing that is asked for by name is there.
    let pickled =
        serve(&[("config.json", b"{}".to_vec()), ("pytorch_model.bin", b"\x80\x02N.".to_vec())], 403);
    assert!(matches!(pull(&pickled), Error::Unauthorised { .. }));
}

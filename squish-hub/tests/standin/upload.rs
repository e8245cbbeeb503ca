//! What is sent to the hub: new repositories, large files, commits.

use super::{Request, Standin, reply, sha256};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    io::{BufReader, Read},
    net::TcpStream,
};

/// What goes wrong.
#[derive(Default)]
pub struct Uploads {
    /// Part of a path, and the status that is answered to requests for it, as often as it is there.
    pub statuses: Vec<(&'static str, u16)>,
    /// Part of a path for which the work is done and the answer lost, once each.
    pub lost: Vec<&'static str>,
    /// Bytes of a body after which the connection is cut, first to last, for large files.
    pub cuts: Vec<usize>,
    /// Large files are wanted in parts of so many bytes.
    pub part: Option<usize>,
}

impl Standin {
    pub(super) fn receive(
        &self,
        mut stream: TcpStream,
        mut reader: BufReader<TcpStream>,
        request: &Request,
    ) -> std::io::Result<()> {
        let Request { method, path, token, length, .. } = request;
        let (status, lost, cut, wanted) = {
            let mut faults = self.faults.lock().unwrap();
            let at = faults.uploads.statuses.iter().position(|(part, _)| path.contains(part));
            let status = at.map(|at| faults.uploads.statuses.remove(at).1);
            let at = faults.uploads.lost.iter().position(|part| path.contains(part));
            let lost = status.is_none() && at.map(|at| faults.uploads.lost.remove(at)).is_some();
            let cuts = &mut faults.uploads.cuts;
            let cut = (method == "PUT" && !cuts.is_empty()).then(|| cuts.remove(0));
            (status, lost, cut, faults.token.clone())
        };
        let mut body = vec![0; cut.map_or(*length, |cut| cut.min(*length))];
        reader.read_exact(&mut body)?;
        if cut.is_some() {
            return Ok(());
        }
        if let Some(status) = status {
            return reply(&mut stream, status, "x-error-message: not today\r\n", b"");
        }
        // Storage has addresses that carry their own permission; the token must not go there.
        let own = !path.starts_with("/upload/");
        if own && (token.is_none() || wanted.is_some() && wanted != *token) || !own && token.is_some() {
            return reply(&mut stream, 401, "", b"");
        }
        let (status, headers, answer) = self.answer(path, &body);
        if lost {
            return Ok(());
        }
        reply(&mut stream, status, &headers, answer.to_string().as_bytes())
    }

    fn answer(&self, path: &str, body: &[u8]) -> (u16, String, Value) {
        let json: Value = serde_json::from_slice(body).unwrap_or_default();
        let fine = |answer: Value| (200, String::new(), answer);
        if path == "/api/repos/create" {
            let name =
                format!("{}/{}", json["organization"].as_str().unwrap(), json["name"].as_str().unwrap());
            let mut state = self.state.lock().unwrap();
            if state.repositories.contains_key(&name) {
                return (409, String::new(), json!({"error": "it is there"}));
            }
            state.repositories.insert(name, super::Files::new());
            return fine(json!({}));
        }
        if path.ends_with("/preupload/main") {
            let files = json["files"].as_array().unwrap().iter().map(|file| {
                let large = file["path"].as_str().unwrap().ends_with(".safetensors");
                json!({"path": file["path"], "uploadMode": if large { "lfs" } else { "regular" }})
            });
            return fine(json!({"files": files.collect::<Vec<_>>()}));
        }
        if path.ends_with(".git/info/lfs/objects/batch") {
            let objects = json["objects"].as_array().unwrap().iter().map(|object| self.object(object));
            return fine(json!({"transfer": "basic", "objects": objects.collect::<Vec<_>>()}));
        }
        if let Some(rest) = path.strip_prefix("/upload/") {
            let (oid, part) = rest.split_once('/').unwrap_or((rest, ""));
            let mut state = self.state.lock().unwrap();
            match part.parse() {
                Ok(number) => {
                    state.parts.insert((oid.into(), number), body.to_vec());
                }
                Err(_) => {
                    assert_eq!(sha256(body), oid, "storage checks what it gets");
                    state.stored.insert(oid.into(), body.to_vec());
                }
            }
            return (200, format!("etag: \"{}\"\r\n", sha256(body)), json!({}));
        }
        if let Some(oid) = path.strip_prefix("/complete/") {
            let mut state = self.state.lock().unwrap();
            let mut whole = Vec::new();
            for part in json["parts"].as_array().unwrap() {
                let number = part["partNumber"].as_u64().unwrap() as usize;
                let bytes = state.parts.remove(&(oid.to_string(), number)).unwrap();
                assert_eq!(part["etag"], format!("\"{}\"", sha256(&bytes)));
                whole.extend(bytes);
            }
            assert_eq!(sha256(&whole), oid);
            state.stored.insert(oid.into(), whole);
            return fine(json!({}));
        }
        if path == "/verify" {
            let there = self.state.lock().unwrap().stored.contains_key(json["oid"].as_str().unwrap());
            return (if there { 200 } else { 422 }, String::new(), json!({}));
        }
        match path.strip_prefix("/api/models/").and_then(|rest| rest.strip_suffix("/commit/main")) {
            Some(repository) => fine(self.commit(repository, body)),
            None => (404, String::new(), json!({})),
        }
    }

    /// What the storage wants of a large file.
    fn object(&self, object: &Value) -> Value {
        let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
        let mut answer = json!({"oid": oid, "size": size});
        if self.state.lock().unwrap().stored.contains_key(oid) {
            return answer;
        }
        let verify = json!({"href": format!("{}/verify", self.address)});
        let upload = match self.faults.lock().unwrap().uploads.part {
            None => json!({"href": format!("{}/upload/{oid}", self.storage())}),
            Some(part) => {
                let mut header = json!({"chunk_size": part.to_string()});
                for number in 1..=size.div_ceil(part) {
                    header[format!("{number:05}")] =
                        format!("{}/upload/{oid}/{number}", self.storage()).into();
                }
                json!({"href": format!("{}/complete/{oid}", self.address), "header": header})
            }
        };
        answer["actions"] = json!({"upload": upload, "verify": verify});
        answer
    }

    /// All of a commit or, where a large file has not arrived, none of it.
    fn commit(&self, repository: &str, body: &[u8]) -> Value {
        let mut state = self.state.lock().unwrap();
        let mut files = state.repositories[repository].clone();
        for (i, line) in std::str::from_utf8(body).unwrap().lines().enumerate() {
            let line: Value = serde_json::from_str(line).unwrap();
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_string();
            match line["key"].as_str().unwrap() {
                "header" => {
                    assert!(i == 0 && value["summary"].is_string());
                    assert!(files.is_empty() || value["parentCommit"] == super::COMMIT);
                }
                "file" => {
                    files.insert(path, STANDARD.decode(value["content"].as_str().unwrap()).unwrap());
                }
                "lfsFile" => {
                    let bytes = state.stored[value["oid"].as_str().unwrap()].clone();
                    assert_eq!(value["size"], bytes.len());
                    files.insert(path, bytes);
                }
                "deletedFile" => assert!(files.remove(&path).is_some()),
                other => panic!("{other}"),
            }
        }
        state.repositories.insert(repository.into(), files);
        json!({"success": true, "commitOid": "f".repeat(40)})
    }
}

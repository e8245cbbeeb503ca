//! The large-file storage: Git LFS's batch requests, with the hub's way of sending a file in parts.
//!
//! The hub answers each object with nothing, where its storage has it; with an address that takes the whole file; or with a size of
//! parts, an address for each, and one to be told of the parts' etags in the end. `verify`, where there is one, is told last.

use super::{
    super::{Hub, Transfer, client::Attempt},
    Measured, is_success,
    post::Payload,
};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::{cell::Cell, collections::BTreeMap};
use ureq::Agent;

const JSON: [(&str, &str); 2] =
    [("accept", "application/vnd.git-lfs+json"), ("content-type", "application/vnd.git-lfs+json")];

impl Hub {
    /// Sends those of the files that the storage does not have.
    pub(super) fn send_large(
        &self,
        sender: &Agent,
        repository: &str,
        files: &[&Measured],
        transfer: &dyn Transfer,
    ) -> Result<()> {
        let url = format!("{}/{repository}.git/info/lfs/objects/batch", self.endpoint);
        let objects: Vec<_> =
            files.iter().map(|file| json!({"oid": file.sha256, "size": file.size})).collect();
        let request = json!({
            "operation": "upload", "transfers": ["basic", "multipart"], "hash_algo": "sha256",
            "ref": {"name": "refs/heads/main"}, "objects": objects,
        });
        let response = self.insist(|| self.lfs(sender, &url, &request, true))?;
        let answer = self.json(&url, response)?;
        for file in files {
            if transfer.cancelled() {
                return Err(Error::Cancelled);
            }
            let refuse =
                |reason: String| Error::Hub { url: url.clone(), reason: format!("{}: {reason}", file.name) };
            let objects = answer["objects"].as_array().into_iter().flatten();
            let object = objects.into_iter().find(|object| object["oid"] == file.sha256.as_str());
            let object = object.ok_or_else(|| refuse("the storage does not speak of it".into()))?;
            if let Some(error) = object.get("error").filter(|error| !error.is_null()) {
                let message = error["message"].as_str().unwrap_or("refused without a reason");
                return Err(refuse(crate::scan::printable(message)));
            }
            let upload = &object["actions"]["upload"];
            if !upload.is_null() {
                self.send_one(sender, file, upload, transfer)?;
                let verify = &object["actions"]["verify"];
                if let Some(href) = verify["href"].as_str() {
                    let request = json!({"oid": file.sha256, "size": file.size});
                    self.insist(|| self.lfs(sender, href, &request, self.is_own(href)))?;
                }
            }
            transfer.at(&file.name, file.size, Some(file.size));
        }
        Ok(())
    }

    fn lfs(&self, sender: &Agent, url: &str, body: &Value, authorised: bool) -> Result<Attempt> {
        let body = body.to_string();
        self.deliver(sender, "POST", url, authorised, &JSON, Payload::Bytes(body.as_bytes()), is_success)
    }

    /// Sends a file as its upload action says.
    fn send_one(
        &self,
        sender: &Agent,
        file: &Measured,
        upload: &Value,
        transfer: &dyn Transfer,
    ) -> Result<()> {
        let refuse = |reason: &str| Error::Hub { url: file.name.clone(), reason: reason.into() };
        let href = upload["href"].as_str().ok_or_else(|| refuse("the storage gives no address"))?;
        let header: BTreeMap<&str, &str> = upload["header"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
            .collect();
        let Some(part) = header.get("chunk_size") else {
            let headers: Vec<_> = header.into_iter().collect();
            return self.send_part(sender, file, href, &headers, 0, file.size, transfer).map(|_| ());
        };
        let part: u64 = part
            .parse()
            .ok()
            .filter(|part| *part > 0)
            .ok_or_else(|| refuse("a size of parts that is no number"))?;
        // Addresses of parts are named by their numbers, from 1 on, with or without zeros before them.
        let addresses: BTreeMap<u64, &str> =
            header.iter().filter_map(|(name, address)| Some((name.parse().ok()?, *address))).collect();
        let count = file.size.div_ceil(part).max(1);
        if addresses.len() as u64 != count || !addresses.keys().copied().eq(1..=count) {
            return Err(refuse("the storage gives addresses for another number of parts"));
        }
        let mut parts = Vec::new();
        for (number, address) in addresses {
            let offset = (number - 1) * part;
            let length = part.min(file.size - offset);
            let etag = self.send_part(sender, file, address, &[], offset, length, transfer)?;
            let etag = etag.ok_or_else(|| refuse("the storage acknowledges a part without an etag"))?;
            parts.push(json!({"partNumber": number, "etag": etag}));
        }
        let request = json!({"oid": file.sha256, "parts": parts});
        self.insist(|| self.lfs(sender, href, &request, self.is_own(href)))?;
        Ok(())
    }

    /// Puts bytes of a file to an address, as often as it takes or is allowed; returns the etag.
    #[allow(clippy::too_many_arguments)]
    fn send_part(
        &self,
        sender: &Agent,
        file: &Measured,
        address: &str,
        headers: &[(&str, &str)],
        offset: u64,
        length: u64,
        transfer: &dyn Transfer,
    ) -> Result<Option<String>> {
        let ended = Cell::new(false);
        let at = |done: u64| {
            transfer.at(&file.name, offset + done, Some(file.size));
            ended.set(transfer.cancelled());
            !ended.get()
        };
        let payload = Payload::Part { path: &file.path, offset, length, at: &at };
        let sent = self.insist(|| {
            let attempt = self.deliver(sender, "PUT", address, false, headers, payload, is_success);
            if ended.get() { Err(Error::Cancelled) } else { attempt }
        });
        Ok(sent?.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned))
    }
}

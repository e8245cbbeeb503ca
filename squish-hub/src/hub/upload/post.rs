//! Requests that carry something.

use crate::{
    Error, Result,
    hub::{Hub, client::Attempt},
};
use serde_json::Value;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};
use ureq::{Agent, Body, SendBody, http::Response};

/// Bytes of an answer.
const MOST_ANSWER: u64 = 16 << 20;

/// What a request carries.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// So many bytes of a file, from an offset on; told of those that have been read.
    Part {
        /// The file.
        path: &'a Path,
        /// The first byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Told how many bytes of the part have gone; ends the request by answering `false`.
        at: &'a dyn Fn(u64) -> bool,
    },
}

/// A part of a file that tells how far it has been read.
struct Watched<'a> {
    part: std::io::Take<File>,
    done: u64,
    at: &'a dyn Fn(u64) -> bool,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.part.read(buffer)?;
        self.done += count as u64;
        if (self.at)(self.done) { Ok(count) } else { Err(std::io::Error::other("cancelled")) }
    }
}

impl Hub {
    /// As for downloads, but for answers that take a while, and with a limit on each write: a file of any length may be sent as
    /// long as it moves.
    pub(super) fn sender(&self) -> Agent {
        Agent::config_builder()
            .timeout_connect(Some(self.timing.connect))
            .timeout_per_write(Some(self.timing.body))
            .timeout_recv_response(Some(self.timing.body))
            .timeout_recv_body(Some(self.timing.body))
            .http_status_as_error(false)
            // A redirected upload would have to be sent twice, and the hub's links to its storage are not redirects.
            .max_redirects(0)
            .user_agent(concat!("squish/", env!("CARGO_PKG_VERSION")))
            .build()
            .into()
    }

    /// One attempt to post JSON to the endpoint.
    pub(super) fn post(
        &self,
        sender: &Agent,
        url: &str,
        body: &Value,
        expected: impl Fn(u16) -> bool,
    ) -> Result<Attempt> {
        let headers = [("content-type", "application/json")];
        self.deliver(
            sender,
            "POST",
            url,
            true,
            &headers,
            Payload::Bytes(body.to_string().as_bytes()),
            expected,
        )
    }

    /// One attempt to send something. The token goes along where `authorised`: to the endpoint, and not to its storage.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn deliver(
        &self,
        sender: &Agent,
        method: &str,
        url: &str,
        authorised: bool,
        headers: &[(&str, &str)],
        payload: Payload,
        expected: impl Fn(u16) -> bool,
    ) -> Result<Attempt> {
        if self.offline {
            return Err(Error::Offline { url: url.into() });
        }
        let mut request = if method == "PUT" { sender.put(url) } else { sender.post(url) };
        if let Some(token) = self.bearer().filter(|_| authorised) {
            request = request.header("authorization", token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = match payload {
            Payload::Bytes(bytes) => request.send(bytes),
            Payload::Part { path, offset, length, at } => {
                let io = |source| Error::Io { path: path.into(), source };
                let mut file = File::open(path).map_err(io)?;
                file.seek(SeekFrom::Start(offset)).map_err(io)?;
                let mut part = Watched { part: file.take(length), done: 0, at };
                // Storage takes no request of unknown length.
                request.header("content-length", length).send(SendBody::from_reader(&mut part))
            }
        };
        match self.judge(url, answer, expected) {
            Err(Error::Unauthorised { url, token }) => Err(Error::WriteDenied { url, token }),
            other => other,
        }
    }

    /// The JSON of an answer.
    pub(super) fn json(&self, url: &str, mut response: Response<Body>) -> Result<Value> {
        let refuse = |reason: String| Error::Hub { url: url.into(), reason };
        let text = response.body_mut().with_config().limit(MOST_ANSWER).read_to_vec();
        serde_json::from_slice(&text.map_err(|e| refuse(e.to_string()))?)
            .map_err(|e| refuse(format!("the answer is not JSON: {e}")))
    }
}

//! Repositories whose list of files is not to be had: private ones, gated ones, hubs behind a firewall that lets files through and
//! nothing else. Their files are asked for by name, and what they are is left to the second layer: the digest, and the scan of every byte.

use super::{
    Hub, Listing, RemoteFile,
    client::Attempt,
    listing::{PLAIN, is_hash},
};
use crate::{Error, Result};
use ureq::{Agent, Body, http::Response};

/// Weights files that an index may name.
const MOST_SHARDS: usize = 1000;
/// Bytes of an index.
const MOST_INDEX: u64 = 16 << 20;
const INDEX: &str = "model.safetensors.index.json";

/// What the headers of an answer say of a file.
struct Stated {
    commit: String,
    etag: String,
    size: Option<u64>,
}

impl Hub {
    /// What a repository holds of the files that a checkpoint may need, and why it is asked for in this way.
    ///
    /// # Errors
    /// `why` itself where the configuration is not to be had either, or no weights; [`Error::NotFound`] for weights that the index
    /// names, [`Error::Hub`] where the hub fails or nothing says what a file holds.
    pub(super) fn unlisted(&self, repository: &str, revision: &str, why: Error) -> Result<Listing> {
        // Redirects are not followed: the answers that lead to storage carry the headers.
        let agent: Agent = Agent::config_builder()
            .timeout_connect(Some(self.timing.connect))
            .timeout_recv_response(Some(self.timing.connect))
            .timeout_recv_body(Some(self.timing.body))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("squish/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        let base = format!("{}/{repository}/resolve/{}", self.endpoint, revision.replace('/', "%2F"));
        let url = |name: &str| format!("{base}/{name}");
        // Once: a hub that has just failed would be waited for a second time.
        let first = match self.head(&agent, &url("config.json")) {
            Ok(Attempt::Answer(response)) => stated(&response),
            _ => None,
        };
        let Some(Stated { commit, .. }) = first else { return Err(why) };
        let ask = |name: &str| {
            let response = match self.insist(|| self.head(&agent, &url(name))) {
                Err(Error::NotFound { .. } | Error::Unauthorised { .. }) => return Ok(None),
                response => response?,
            };
            let refuse = |reason: &str| Error::Hub { url: url(name), reason: reason.into() };
            let Stated { commit: found, etag, size } =
                stated(&response).ok_or_else(|| refuse("the answer names no commit, or no digest"))?;
            if found != commit {
                return Err(refuse("the revision changed while its files were asked for"));
            }
            Ok(Some(RemoteFile { name: name.into(), size, etag }))
        };
        let mut listing =
            Listing { commit: commit.clone(), fetched: Vec::new(), pickled: Vec::new(), unlisted: None };
        for name in PLAIN.iter().chain(&["model.safetensors"]) {
            listing.fetched.extend(ask(name)?);
        }
        if listing.fetched.iter().any(|file| file.name == INDEX) {
            for name in self.shards(repository, &commit)? {
                if listing.fetched.iter().all(|file| file.name != name) {
                    let missing = || Error::NotFound { url: url(&name) };
                    listing.fetched.push(ask(&name)?.ok_or_else(missing)?);
                }
            }
        }
        if !listing.fetched.iter().any(|file| file.name.ends_with(".safetensors")) {
            return Err(why);
        }
        listing.unlisted = Some(format!(
            "no list of files ({why}): they are asked for by name, and judged by their bytes alone"
        ));
        Ok(listing)
    }

    /// One attempt at the headers of a file.
    fn head(&self, agent: &Agent, url: &str) -> Result<Attempt> {
        let mut request = agent.head(url);
        if let Some(token) = self.bearer() {
            request = request.header("authorization", token);
        }
        self.judge(url, request.call(), |status| matches!(status, 200 | 301 | 302 | 303 | 307 | 308))
    }

    /// The weights files that a repository's index names.
    fn shards(&self, repository: &str, commit: &str) -> Result<Vec<String>> {
        let url = format!("{}/{repository}/resolve/{commit}/{INDEX}", self.endpoint);
        let mut answer = self.request(&self.agent(), &url)?;
        let refuse = |reason: String| Error::Hub { url: url.clone(), reason };
        let text = answer.body_mut().with_config().limit(MOST_INDEX).read_to_vec();
        let text = text.map_err(|e| refuse(e.to_string()))?;
        let index: serde_json::Value =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("not JSON: {e}")))?;
        let names =
            index["weight_map"].as_object().into_iter().flatten().filter_map(|(_, file)| file.as_str());
        let plain = |name: &&str| crate::name::is_relative_file(name) && super::listing::is_wanted(name);
        let names: std::collections::BTreeSet<String> = names.filter(plain).map(str::to_owned).collect();
        if names.len() > MOST_SHARDS {
            return Err(refuse(format!("{} weights files, at most {MOST_SHARDS} are fetched", names.len())));
        }
        Ok(names.into_iter().collect())
    }
}

/// What an answer's headers say of its file; `None` where they do not name its contents.
fn stated(response: &Response<Body>) -> Option<Stated> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let etag = header("x-linked-etag").or_else(|| header("etag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    let commit = header("x-repo-commit")?;
    let size = header("x-linked-size").or_else(|| length(response)).and_then(|size| size.parse().ok());
    (is_hash(&commit) && is_hash(&etag)).then_some(Stated { commit, etag, size })
}

/// The length of what was asked for, where the answer is the file itself.
fn length(response: &Response<Body>) -> Option<String> {
    let found = response.status().as_u16() == 200;
    found.then(|| response.headers().get("content-length")?.to_str().ok().map(str::to_owned)).flatten()
}

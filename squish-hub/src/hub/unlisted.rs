//! Repositories whose list of files is not to be had: private ones, gated ones, hubs behind a firewall that lets files through and
//! nothing else. Their files are asked for by name, and what they are is left to the second layer: the digest, and the scan of every byte.

use super::{Hub, Listing, RemoteFile, listing::PLAIN};
use crate::{Error, Result};
use ureq::{Agent, Body, http::Response};

/// Weights files that an index may name.
const MOST_SHARDS: usize = 1000;
/// Bytes of an index.
const MOST_INDEX: u64 = 16 << 20;
const INDEX: &str = "model.safetensors.index.json";

impl Hub {
    /// What a repository holds of the files that a checkpoint may need, and why it is asked for in this way.
    ///
    /// # Errors
    /// `why` itself where the files are not to be had either, or nothing names their contents.
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
        let ask = |name: &str| self.head(&agent, &format!("{base}/{name}"));
        let Some((commit, _, _)) = ask("config.json") else { return Err(why) };
        let mut listing = Listing { commit, fetched: Vec::new(), pickled: Vec::new(), unlisted: None };
        let mut names: Vec<String> = PLAIN.iter().map(ToString::to_string).collect();
        names.push("model.safetensors".into());
        if ask(INDEX).is_some() {
            names.extend(self.shards(repository, &listing.commit)?);
        }
        for name in names {
            if let Some((commit, etag, size)) = ask(&name) {
                if commit != listing.commit {
                    let reason = "the revision changed while its files were asked for".into();
                    return Err(Error::Hub { url: format!("{base}/{name}"), reason });
                }
                listing.fetched.push(RemoteFile { name, size, etag });
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

    /// Commit, digest and size of a file, by one request; `None` where it is not there, or nothing says what it holds.
    fn head(&self, agent: &Agent, url: &str) -> Option<(String, String, Option<u64>)> {
        let mut request = agent.head(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().ok()?;
        if !matches!(response.status().as_u16(), 200 | 301 | 302 | 303 | 307 | 308) {
            return None;
        }
        let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
        let etag = header("x-linked-etag").or_else(|| header("etag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let commit = header("x-repo-commit")?;
        let size = header("x-linked-size").or_else(|| length(&response)).and_then(|size| size.parse().ok());
        (super::listing::is_hash(&commit) && super::listing::is_hash(&etag)).then_some((commit, etag, size))
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

/// The length of what was asked for, where the answer is the file itself.
fn length(response: &Response<Body>) -> Option<String> {
    let found = response.status().as_u16() == 200;
    found.then(|| response.headers().get("content-length")?.to_str().ok().map(str::to_owned)).flatten()
}

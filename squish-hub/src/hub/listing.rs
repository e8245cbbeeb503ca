//! What a repository holds, and which of it is fetched.

use super::Hub;
use crate::{Error, Result, scan};
use serde::Deserialize;
use ureq::{Body, http::Response};

/// Files of a repository, at most.
const MOST_FILES: usize = 10_000;
/// Bytes of the hub's answer.
const MOST_ANSWER: u64 = 64 << 20;

/// A repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// What will be fetched.
    pub fetched: Vec<RemoteFile>,
    /// What will not, because its name stands for pickled data.
    pub pickled: Vec<String>,
    /// Why the files were asked for by name, where the hub gave no list of them: the first layer is not there then.
    pub unlisted: Option<String>,
}

/// One file on the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its path in the repository.
    pub name: String,
    /// Its bytes, where the hub says.
    pub size: Option<u64>,
    /// What its contents are known by: SHA-256 or git's blob hash, in hexadecimal digits.
    pub etag: String,
}

/// The hub's answer: all files of a revision.
#[derive(Deserialize)]
pub(super) struct Answer {
    /// The commit.
    pub sha: String,
    /// The files.
    pub siblings: Vec<Sibling>,
}

/// A file in that answer.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sibling {
    /// Its path in the repository.
    pub rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Sibling {
    /// What its contents are known by, in lower case: SHA-256 for a large file, git's blob hash for another.
    pub fn etag(&self) -> Option<String> {
        let sha256 = self.lfs.as_ref().and_then(|lfs| lfs.sha256.as_ref());
        sha256.or(self.blob_id.as_ref()).filter(|etag| is_hash(etag)).map(|etag| etag.to_ascii_lowercase())
    }

    fn size(&self) -> Option<u64> {
        self.lfs.as_ref().and_then(|lfs| lfs.size).or(self.size)
    }
}

/// The files beside the weights that a checkpoint may need.
pub(super) const PLAIN: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "vocab.json",
    "merges.txt",
    "README.md",
    "LICENSE",
    "squish_origin.json",
];

/// Whether a file is one that a checkpoint may need.
pub(super) fn is_wanted(name: &str) -> bool {
    PLAIN.contains(&name) || !name.contains('/') && name.ends_with(".safetensors")
}

/// Whether text is SHA-1 or SHA-256 in hexadecimal digits.
pub(super) fn is_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Hub {
    /// Asks for the list of a revision's files.
    fn request_files(&self, repository: &str, revision: &str) -> Result<Response<Body>> {
        crate::name::check_repository(repository)?;
        crate::name::check_revision(revision)?;
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{repository}/revision/{revision}?blobs=true", self.endpoint);
        self.request(&self.agent(), &url)
    }

    /// Reads that list.
    fn read_files(&self, repository: &str, mut answer: Response<Body>) -> Result<Answer> {
        let refuse = |reason: String| Error::Hub { url: format!("{}/{repository}", self.endpoint), reason };
        let text = answer.body_mut().with_config().limit(MOST_ANSWER).read_to_vec();
        let text = text.map_err(|e| refuse(e.to_string()))?;
        let answer: Answer =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("not a list of files: {e}")))?;
        if !is_hash(&answer.sha) || answer.siblings.len() > MOST_FILES {
            return Err(refuse(format!("no commit, or more than {MOST_FILES} files")));
        }
        Ok(answer)
    }

    /// All files of a revision.
    pub(super) fn files(&self, repository: &str, revision: &str) -> Result<Answer> {
        self.read_files(repository, self.request_files(repository, revision)?)
    }

    /// Asks for a repository's list of files, and decides what is fetched. Where there is no list to be had, the files are asked
    /// for by name ([`Listing::unlisted`]).
    ///
    /// # Errors
    /// [`Error::Unsafe`] where it offers weights as pickled data only; those of a request.
    pub fn listing(&self, repository: &str, revision: &str) -> Result<Listing> {
        match self.listed(repository, revision) {
            Err(e @ (Error::Unauthorised { .. } | Error::NotFound { .. } | Error::Hub { .. })) => {
                self.unlisted(repository, revision, e)
            }
            listing => listing,
        }
    }

    /// What the hub's list says.
    fn listed(&self, repository: &str, revision: &str) -> Result<Listing> {
        let answer = self.files(repository, revision)?;
        let mut listing =
            Listing { commit: answer.sha, fetched: Vec::new(), pickled: Vec::new(), unlisted: None };
        for file in answer.siblings {
            if scan::is_never_fetched(&file.rfilename) {
                listing.pickled.push(scan::printable(&file.rfilename));
            } else if crate::name::is_relative_file(&file.rfilename) && is_wanted(&file.rfilename) {
                let Some(etag) = file.etag() else {
                    let reason = format!("no digest for {}", scan::printable(&file.rfilename));
                    return Err(Error::Hub { url: format!("{}/{repository}", self.endpoint), reason });
                };
                listing.fetched.push(RemoteFile { size: file.size(), name: file.rfilename, etag });
            }
        }
        if !listing.fetched.iter().any(|file| file.name.ends_with(".safetensors")) {
            let pickled = listing.pickled.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let reason = match pickled.as_str() {
                "" => "it has no safetensors weights".into(),
                pickled => format!("its weights are pickled data only: {pickled}"),
            };
            return Err(Error::Unsafe { what: repository.into(), reason });
        }
        Ok(listing)
    }
}

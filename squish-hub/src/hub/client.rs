//! Requests: headers, redirects, and what is tried again.

use super::Hub;
use crate::{Error, Result};
use std::time::Duration;
use ureq::{Agent, Body, http::Response};

/// How long to wait, and how often to try.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Until a connection stands, and until an answer begins.
    pub connect: Duration,
    /// For a part of a file; what has come until then is kept, and the rest asked for anew.
    pub body: Duration,
    /// Attempts in a row that bring nothing new.
    pub attempts: u32,
    /// The pause after the first of them; each is twice the one before.
    pub pause: Duration,
    /// The longest pause, also where the hub asks for more.
    pub longest_pause: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            body: Duration::from_secs(120),
            attempts: 6,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
        }
    }
}

/// What one attempt came to.
pub(super) enum Attempt {
    /// An answer with a status that was to be expected.
    Answer(Response<Body>),
    /// Worth another attempt, after a pause that the hub may have asked for.
    Again(Error, Option<Duration>),
}

impl Hub {
    pub(super) fn agent(&self) -> Agent {
        // ureq sends `Authorization` to no host but the first: the links to storage that a hub redirects to carry
        // their own signature.
        Agent::config_builder()
            .timeout_connect(Some(self.timing.connect))
            .timeout_recv_response(Some(self.timing.connect))
            .timeout_recv_body(Some(self.timing.body))
            .http_status_as_error(false)
            .max_redirects(8)
            .user_agent(concat!("squish/", env!("CARGO_PKG_VERSION")))
            .build()
            .into()
    }

    /// Asks the endpoint for anything at all, once.
    ///
    /// # Errors
    /// [`Error::Offline`], or why there is no answer.
    pub fn reach(&self) -> Result<()> {
        let url = format!("{}/api/models?limit=1", self.endpoint);
        match self.attempt(&self.agent(), &url, None) {
            Ok(Attempt::Again(error, _)) => Err(error),
            // Whatever it thinks of the question: it answers.
            Ok(Attempt::Answer(_)) | Err(Error::NotFound { .. } | Error::Unauthorised { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One attempt at an address; `range` is the value of the header, for a part of a file.
    ///
    /// # Errors
    /// What another attempt would not change: [`Error::Offline`], [`Error::Unauthorised`], [`Error::NotFound`],
    /// [`Error::Hub`].
    pub(super) fn attempt(&self, agent: &Agent, url: &str, range: Option<&str>) -> Result<Attempt> {
        if self.offline {
            return Err(Error::Offline { url: url.into() });
        }
        let mut request = agent.get(url);
        if let Some(token) = self.bearer() {
            request = request.header("authorization", token);
        }
        if let Some(range) = range {
            request = request.header("range", range);
        }
        self.judge(url, request.call(), |status| matches!(status, 200 | 206 | 416))
    }

    /// The header that carries the token.
    pub(super) fn bearer(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    /// What an attempt came to: `expected` are the statuses that its caller deals with.
    pub(super) fn judge(
        &self,
        url: &str,
        answer: Result<Response<Body>, ureq::Error>,
        expected: impl Fn(u16) -> bool,
    ) -> Result<Attempt> {
        let url = url.to_owned();
        let response = match answer {
            Ok(response) => response,
            Err(ureq::Error::BadUri(reason)) => return Err(Error::Hub { url, reason }),
            Err(e @ ureq::Error::TooManyRedirects) => return Err(Error::Hub { url, reason: e.to_string() }),
            Err(e) => return Ok(Attempt::Again(Error::Hub { url, reason: e.to_string() }, None)),
        };
        match response.status().as_u16() {
            status if expected(status) => Ok(Attempt::Answer(response)),
            401 | 403 => Err(Error::Unauthorised { url, token: self.token.is_some() }),
            404 | 410 => Err(Error::NotFound { url }),
            status @ (408 | 425 | 429 | 500..=599) => {
                let after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
                let reason = format!("the hub answers {status}");
                Ok(Attempt::Again(Error::Hub { url, reason }, after.map(Duration::from_secs)))
            }
            status => {
                let said = response.headers().get("x-error-message").and_then(|said| said.to_str().ok());
                let said = said.map(|said| format!(": {}", crate::scan::printable(said))).unwrap_or_default();
                Err(Error::Hub { url, reason: format!("the hub answers {status}{said}") })
            }
        }
    }

    /// Whether an address is on the endpoint, so that the token may go there.
    pub(super) fn is_own(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint).is_some_and(|path| path.starts_with('/'))
    }

    /// Waits before attempt `failed + 1`, or gives up with the error.
    pub(super) fn wait(&self, failed: u32, error: Error, asked: Option<Duration>) -> Result<()> {
        if failed >= self.timing.attempts {
            return Err(error);
        }
        let pause = self.timing.pause.saturating_mul(1 << (failed.max(1) - 1).min(16));
        std::thread::sleep(asked.unwrap_or(pause).min(self.timing.longest_pause));
        Ok(())
    }

    /// An answer, after as many attempts as it takes or are allowed.
    pub(super) fn request(&self, agent: &Agent, url: &str) -> Result<Response<Body>> {
        self.insist(|| self.attempt(agent, url, None))
    }

    /// As many attempts as it takes or are allowed.
    pub(super) fn insist(&self, attempt: impl Fn() -> Result<Attempt>) -> Result<Response<Body>> {
        let mut failed = 0;
        loop {
            match attempt()? {
                Attempt::Answer(response) => return Ok(response),
                Attempt::Again(error, asked) => {
                    failed += 1;
                    self.wait(failed, error, asked)?;
                }
            }
        }
    }
}

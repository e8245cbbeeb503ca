//! Multiple-choice questions, and how they become prompts.
//!
//! A file has one JSON object a line:
//!
//! ```json
//! {"query": "Question: Which gas do plants take in?", "choices": ["oxygen", "carbon dioxide"], "gold": 1}
//! ```
//!
//! `query` is the text before the answer's cue, `gold` the index of the right choice; other fields are ignored.

use crate::{Error, Result, output::io_error};
use serde::Deserialize;
use std::path::Path;

/// A benchmark: what its files are called, and how its prompts end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// The name, as lm-evaluation-harness has it (`openbook_qa` is `openbookqa` there).
    pub name: &'static str,
    /// Whether `Answer:` on a line of its own follows the query.
    answer_cue: bool,
}

/// The benchmarks of this build.
pub const TASKS: &[Task] = &[
    Task { name: "arc_easy", answer_cue: true },
    Task { name: "arc_challenge", answer_cue: true },
    Task { name: "piqa", answer_cue: true },
    Task { name: "openbook_qa", answer_cue: false },
];

/// A question with its choices.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Question {
    /// The text before the answer's cue.
    pub query: String,
    /// The possible answers, at least two, none of them empty.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub gold: usize,
}

impl Task {
    /// The benchmark of this name.
    pub fn by_name(name: &str) -> Option<Task> {
        TASKS.iter().copied().find(|task| task.name == name)
    }

    /// The text that a choice continues, after a space. `Answer:` begins a new line.
    pub fn context(&self, question: &Question) -> String {
        let query = &question.query;
        match (self.answer_cue, query.ends_with('\n')) {
            (false, _) => query.clone(),
            (true, true) => format!("{query}Answer:"),
            (true, false) => format!("{query}\nAnswer:"),
        }
    }
}

impl Question {
    /// Reads the first `limit` questions of a file, or all.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Questions`], which names the line.
    pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Self>> {
        let text = std::fs::read_to_string(path).map_err(io_error(path))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let questions = lines.take(limit.unwrap_or(usize::MAX)).map(|(i, line)| {
            let refuse = |reason: String| Error::Questions { path: path.into(), line: i + 1, reason };
            let question: Self = serde_json::from_str(line).map_err(|e| refuse(e.to_string()))?;
            match question.fault() {
                Some(fault) => Err(refuse(fault)),
                None => Ok(question),
            }
        });
        let questions: Vec<Self> = questions.collect::<Result<_>>()?;
        if questions.is_empty() {
            return Err(Error::Questions { path: path.into(), line: 1, reason: "no question".into() });
        }
        Ok(questions)
    }

    fn fault(&self) -> Option<String> {
        if self.query.trim().is_empty() {
            Some("`query` is empty".into())
        } else if self.choices.len() < 2 {
            Some(format!("{} choices, expected at least 2", self.choices.len()))
        } else if self.choices.iter().any(String::is_empty) {
            Some("a choice is empty".into())
        } else if self.gold >= self.choices.len() {
            Some(format!("`gold` is {}, expected less than {}", self.gold, self.choices.len()))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_end_as_the_harness_ends_them() {
        let context = |task: &str, query: &str| {
            let question = Question { query: query.into(), choices: vec![], gold: 0 };
            Task::by_name(task).unwrap().context(&question)
        };
        assert_eq!(context("arc_easy", "Question: Why?"), "Question: Why?\nAnswer:");
        assert_eq!(context("piqa", "Question: a goal\n"), "Question: a goal\nAnswer:");
        assert_eq!(context("openbook_qa", "A stove is"), "A stove is");
        assert_eq!(Task::by_name("hellaswag"), None);
    }
}

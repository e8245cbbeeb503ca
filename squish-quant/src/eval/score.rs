//! Multiple-choice scores, as lm-evaluation-harness defines them.
//!
//! The score of a choice is its log-likelihood as a continuation of the prompt. `acc` counts the questions whose right
//! choice has the largest. `acc_norm` divides it by the length of the choice in characters first, `acc_bytes` by that in
//! UTF-8 bytes, so that long choices have a chance; on plain ASCII these two are one.

use super::{Encoder, Logits, Question, Task};
use crate::{Error, Progress, Result};
use serde::Serialize;
use squish_models::{Model, Session};
use std::{
    path::Path,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskScore {
    /// Fraction of the questions answered right.
    pub acc: f64,
    /// Its standard error, `sqrt(acc (1 - acc) / (questions - 1))`; absent for a single question.
    pub acc_stderr: Option<f64>,
    /// The fraction with log-likelihoods divided by the characters of the choices.
    pub acc_norm: f64,
    /// Its standard error.
    pub acc_norm_stderr: Option<f64>,
    /// The fraction with log-likelihoods divided by the UTF-8 bytes of the choices.
    pub acc_bytes: f64,
    /// Its standard error.
    pub acc_bytes_stderr: Option<f64>,
    /// Questions.
    pub questions: usize,
    /// Wall-clock time of the forward passes.
    pub seconds: f64,
}

/// Scores a checkpoint, squished or original, on the first `limit` questions of a file, or on all.
///
/// # Errors
/// When the checkpoint, its tokenizer or the file cannot be used.
pub fn score(
    dir: &Path,
    task: Task,
    questions: &Path,
    limit: Option<usize>,
    progress: &dyn Progress,
) -> Result<TaskScore> {
    let model = super::exact(dir)?;
    let encoder = Encoder::from_dir(dir)?;
    let questions = Question::read(questions, limit)?;
    let start = Instant::now();
    let scores = log_likelihoods(&model, &encoder, task, &questions, progress).map_err(|e| match e {
        Error::NotFiniteLogits { part, index, .. } => {
            Error::NotFiniteLogits { model: dir.display().to_string(), part, index }
        }
        other => other,
    })?;
    Ok(TaskScore::new(&questions, &scores, start.elapsed().as_secs_f64()))
}

impl TaskScore {
    /// Counts right answers. `scores` has the log-likelihood of every choice of every question.
    fn new(questions: &[Question], scores: &[Vec<f64>], seconds: f64) -> Self {
        let n = questions.len() as f64;
        // The fraction of right answers, with scores divided by some length of the choice.
        let accuracy = |length: fn(&str) -> usize| {
            let right = questions.iter().zip(scores).filter(|(question, scores)| {
                let choices = question.choices.iter().zip(*scores);
                let normalised = choices.map(|(choice, score)| score / length(choice) as f64);
                largest(&normalised.collect::<Vec<_>>()) == question.gold
            });
            right.count() as f64 / n
        };
        let stderr = |p: f64| (questions.len() > 1).then(|| (p * (1.0 - p) / (n - 1.0)).sqrt());
        let acc = accuracy(|_| 1);
        let acc_norm = accuracy(|choice| choice.chars().count());
        let acc_bytes = accuracy(str::len);
        Self {
            acc,
            acc_stderr: stderr(acc),
            acc_norm,
            acc_norm_stderr: stderr(acc_norm),
            acc_bytes,
            acc_bytes_stderr: stderr(acc_bytes),
            questions: questions.len(),
            seconds,
        }
    }
}

/// Index of the largest value, the first of equals.
fn largest(values: &[f64]) -> usize {
    (0..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// The log-likelihood, in nats, of every choice of every question. Questions are spread over threads; each is
/// computed on its own, so that the numbers do not depend on their number or order.
///
/// # Errors
/// [`Error::Tokenizer`], [`Error::NotFiniteLogits`] (which names the model `the model`), [`Error::Interrupted`],
/// [`Error::Parameter`] for a choice longer than the model's context, or a failed forward pass.
pub fn log_likelihoods(
    model: &Model,
    encoder: &Encoder,
    task: Task,
    questions: &[Question],
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let threads = rayon::current_num_threads().min(questions.len());
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    let mut scores = vec![Vec::new(); questions.len()];
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                let mut session = model.session();
                while let Some((i, question)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    questions.get(i).filter(|_| !stop.load(Ordering::Relaxed)).map(|q| (i, q))
                } {
                    let found = choices(&mut session, encoder, task, question, i);
                    // Nobody listens once some question has failed.
                    if sender.send((i, found)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let collected = collect(&receiver, &mut scores, task, progress);
        stop.store(collected.is_err(), Ordering::Relaxed);
        drop(receiver);
        collected
    })?;
    Ok(scores)
}

/// Takes the answers as they come.
fn collect(
    receiver: &mpsc::Receiver<(usize, Result<Vec<f64>>)>,
    scores: &mut [Vec<f64>],
    task: Task,
    progress: &dyn Progress,
) -> Result<()> {
    let total = scores.len();
    super::check(progress, 0, total, task.name)?;
    for (done, (i, found)) in receiver.iter().enumerate() {
        scores[i] = found?;
        super::check(progress, done + 1, total, task.name)?;
    }
    Ok(())
}

/// The log-likelihood of each choice of one question. The prompt is computed once.
fn choices(
    session: &mut Session,
    encoder: &Encoder,
    task: Task,
    question: &Question,
    index: usize,
) -> Result<Vec<f64>> {
    let mut scorer = Scorer { session, context: Vec::new(), next: None };
    let text = task.context(question);
    let scores = question.choices.iter().map(|choice| {
        let (context, continuation) = encode_pair(encoder, &text, &format!(" {choice}"))?;
        let score = scorer.score(&context, &continuation)?;
        if !score.is_finite() {
            let model = "the model".into();
            return Err(Error::NotFiniteLogits { model, part: "question", index });
        }
        Ok(score)
    });
    scores.collect()
}

/// Tokens of a context and its continuation, as the harness splits them: both together are tokenised, and the
/// continuation is what exceeds the tokens of the context alone. Spaces at the context's end go to the continuation.
fn encode_pair(encoder: &Encoder, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    let trimmed = context.trim_end();
    let whole = encoder.encode(&format!("{context}{continuation}"))?;
    let alone = encoder.encode(trimmed)?;
    let continuation = whole[alone.len().min(whole.len())..].to_vec();
    Ok(([encoder.prefix(), &alone].concat(), continuation))
}

/// A session that holds a context and scores continuations of it.
struct Scorer<'a> {
    session: &'a mut Session,
    context: Vec<u32>,
    /// The logits after the context.
    next: Option<Logits>,
}

impl Scorer<'_> {
    /// `sum_t ln p(continuation[t] | context, continuation[..t])`. Where both are longer than the model's context,
    /// the beginning of `context` is left out, as the harness does.
    fn score(&mut self, context: &[u32], continuation: &[u32]) -> Result<f64> {
        let limit = self.session.model().config().context_length;
        let excess = (context.len() + continuation.len()).saturating_sub(limit + 1);
        if excess >= context.len() || continuation.is_empty() {
            return Err(Error::Parameter {
                name: "the length of a choice and its prompt",
                value: format!("{} + {} tokens", continuation.len(), context.len()),
                expected: "at least 1 each, and a choice within the model's context",
            });
        }
        let context = &context[excess..];
        if self.next.is_none() || self.context != context {
            self.session.reset();
            let next = self.session.feed(context)?.unsqueeze(0).map_err(squish_models::Error::from)?;
            self.next = Some(Logits::new(&next, 1).map_err(squish_models::Error::from)?);
            self.context = context.to_vec();
        }
        let next = self.next.as_ref().expect("the context has been fed");
        let first = next.nll(0, continuation[0]);
        if continuation.len() == 1 {
            return Ok(-first);
        }
        let rest = super::nll(self.session, &continuation[..continuation.len() - 1], &continuation[1..])?;
        self.session.truncate(self.context.len());
        Ok(-first - rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_accuracies() {
        let question = |choices: [&str; 2], gold| Question {
            query: "q".into(),
            choices: choices.map(String::from).into(),
            gold,
        };
        // Per question: the larger score; the larger per character; the larger per byte.
        let questions =
            [question(["aa", "bbbb"], 0), question(["aa", "bbbb"], 1), question(["\u{e9}\u{e9}", "bbb"], 0)];
        let scores = [vec![-3.0, -4.0], vec![-3.0, -4.0], vec![-4.0, -5.0]];
        let measured = TaskScore::new(&questions, &scores, 0.0);
        let third = 1.0 / 3.0;
        assert_eq!((measured.acc, measured.acc_norm, measured.acc_bytes), (2.0 * third, third, 2.0 * third));
        assert_eq!(measured.acc_norm_stderr, Some((third * (1.0 - third) / 2.0).sqrt()));
        assert_eq!(TaskScore::new(&questions[..1], &scores[..1], 0.0).acc_stderr, None);
        assert_eq!(largest(&[1.0, 2.0, 2.0]), 1);
    }
}

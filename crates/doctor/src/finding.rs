//! What doctor finds.

use serde::Serialize;

use crate::text::Text;

/// How bad it is; the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Migrations fail.
    Failure,
    /// Some migrations may fail.
    Warning,
    /// It could not be found out.
    Unknown,
    /// Good to know.
    Note,
    /// Nothing to do.
    Ok,
}

/// One answer to one question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The question, as docs/operations.md lists them.
    pub check: &'static str,
    /// Of what: `cluster`, `node worker-1`, `pod default/consumer-0`.
    pub subject: String,
    /// The answer.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// A question about something, to be answered.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// See [`Finding::check`].
    pub check: &'static str,
    /// See [`Finding::subject`].
    pub subject: &'a str,
}

impl Question<'_> {
    /// Nothing to do.
    pub fn ok(self, reason: impl Into<String>) -> Finding {
        self.answer(Verdict::Ok, reason.into(), None)
    }

    /// Good to know.
    pub fn note(self, reason: impl Into<String>) -> Finding {
        self.answer(Verdict::Note, reason.into(), None)
    }

    /// Some migrations may fail.
    pub fn warning(self, reason: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.answer(Verdict::Warning, reason.into(), Some(remedy.into()))
    }

    /// Migrations fail.
    pub fn failure(self, reason: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.answer(Verdict::Failure, reason.into(), Some(remedy.into()))
    }

    /// It could not be found out.
    pub fn unknown(self, why: &Text) -> Finding {
        self.answer(Verdict::Unknown, why.to_string(), None)
    }

    fn answer(self, verdict: Verdict, reason: String, remedy: Option<String>) -> Finding {
        Finding { check: self.check, subject: self.subject.to_owned(), verdict, reason, remedy }
    }
}

//! What an agent says when it does not do something.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use shadow_checkpoint::agent::wire::Refusal;

/// A status and a sentence: what was attempted, why not, what to do.
#[derive(Debug, Clone)]
pub struct No {
    /// The status.
    pub status: StatusCode,
    /// The sentence.
    pub why: String,
    /// Another try may help.
    pub passing: bool,
}

impl No {
    /// It stays so.
    pub fn refused(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), passing: false }
    }

    /// It may be otherwise next time.
    pub fn passing(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), passing: true }
    }
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        tracing::info!(status = self.status.as_u16(), why = self.why, "refused");
        let refusal = Refusal { error: self.why, passing: self.passing };
        (self.status, Json(refusal)).into_response()
    }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

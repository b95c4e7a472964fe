//! How the API server says no.

use serde_json::{Value, json};

/// A failed request: an HTTP status code, Kubernetes' word for it and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code}): {message}")]
pub struct Refusal {
    /// HTTP status code.
    pub code: u16,
    /// As in `metav1.Status`.
    pub reason: &'static str,
    /// What exactly.
    pub message: String,
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// The caller may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", message)
    }

    /// There is no such object.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(404, "NotFound", format!("{what} not found"))
    }

    /// There is such an object already.
    pub fn exists(what: impl std::fmt::Display) -> Self {
        Self::new(409, "AlreadyExists", format!("{what} already exists"))
    }

    /// The object has changed or is another one.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message)
    }

    /// The watch starts before what the server remembers.
    pub fn expired() -> Self {
        Self::new(410, "Expired", "too old resource version")
    }

    /// The object breaks a rule.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// The server has enough to do.
    pub fn busy() -> Self {
        Self::new(429, "TooManyRequests", "too many requests, please try again later")
    }

    /// The server is at a loss.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// The server did not manage in time.
    pub fn timeout() -> Self {
        Self::new(504, "Timeout", "request did not complete within the requested timeout")
    }

    /// As `metav1.Status`.
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

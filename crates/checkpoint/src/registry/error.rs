//! Why a registry operation failed. No variant carries credentials, or words of the registry other
//! than the codes and messages that the distribution specification gives to errors.

use http::StatusCode;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke.
    #[error("{attempted} at registry {host}: not reachable; check its address and the network")]
    Unreachable {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// Something answers there, but not in TLS.
    #[error(
        "registry {host} does not speak TLS, and a checkpoint is a process's whole memory: use a \
         registry with TLS, or allow --plain-http"
    )]
    NotTls {
        /// The registry.
        host: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// No answer in time, or an upload that stands still.
    #[error("{attempted} at registry {host}: no answer within {seconds} s; check its health")]
    Timeout {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// The limit.
        seconds: u64,
    },
    /// Wrong or missing credentials, or credentials that would go in the clear.
    #[error("registry {host} can't be used with these credentials: {why}")]
    Auth {
        /// The registry.
        host: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// It wants a token that can't be had.
    #[error("registry {host} wants a bearer token, and none can be had: {why}")]
    Token {
        /// The registry.
        host: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The registry said no.
    #[error("{attempted} at registry {host}: it answered {status}{said}")]
    Answer {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// The status.
        status: StatusCode,
        /// What it said of it, after a colon, or nothing.
        said: String,
    },
    /// The registry's answer is not what the distribution specification says.
    #[error("{attempted} at registry {host}: {why}; is it a container registry?")]
    Nonsense {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// What is wrong with the answer.
        why: &'static str,
    },
    /// The registry stored something else than was sent.
    #[error("{attempted} at registry {host}: it has {answered} where {expected} was sent")]
    WrongDigest {
        /// The operation.
        attempted: String,
        /// The registry.
        host: String,
        /// What was sent.
        expected: String,
        /// What it says it has.
        answered: String,
    },
    /// A local file can't be read.
    #[error("read {file}")]
    File {
        /// Its path.
        file: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether another try may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::WrongDigest { .. } => true,
            Self::Answer { status, .. } => {
                status.is_server_error()
                    || matches!(
                        *status,
                        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                    )
            }
            Self::NotTls { .. }
            | Self::Auth { .. }
            | Self::Token { .. }
            | Self::Nonsense { .. }
            | Self::File { .. } => false,
        }
    }
}

/// The longest text of a registry that is repeated.
const LONGEST_SAYING: usize = 200;

/// What a registry's error document says, as `: CODE message`. Anything else, as a proxy's page, says
/// nothing: it might repeat the request.
pub(super) fn said(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &document["errors"][0];
    let Some(code) = error["code"].as_str() else { return String::new() };
    let message = error["message"].as_str().unwrap_or_default();
    let text = format!(": {code} {message}");
    text.trim_end().chars().filter(|c| !c.is_control()).take(LONGEST_SAYING).collect()
}

/// What to do about answers that have one usual cause.
pub(super) fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => {
            "; does the repository exist, and does the registry create repositories on push?"
        }
        StatusCode::METHOD_NOT_ALLOWED => "; the registry does not allow this operation",
        StatusCode::PAYLOAD_TOO_LARGE => {
            "; raise the limit on request bodies at the registry or the proxy before it"
        }
        StatusCode::INSUFFICIENT_STORAGE => "; the registry's disk is full",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_error_documents_are_repeated() {
        let document =
            br#"{"errors":[{"code":"DENIED","message":"no\npush","detail":"Basic abc"}]}"#;
        assert_eq!(said(document), ": DENIED nopush");
        assert_eq!(said(br#"{"errors":[{"code":"UNKNOWN"}]}"#), ": UNKNOWN");
        for other in [b"<html>Authorization: Basic abc".as_slice(), b"", b"[]", b"{\"errors\":1}"] {
            assert_eq!(said(other), "");
        }
        let long = format!(r#"{{"errors":[{{"code":"{}"}}]}}"#, "x".repeat(5000));
        assert_eq!(said(long.as_bytes()).len(), LONGEST_SAYING);
    }

    #[test]
    fn a_missing_repository_is_not_tried_again_and_an_overload_is() {
        let answer = |status| Error::Answer {
            attempted: "send a blob".to_owned(),
            host: "r".to_owned(),
            status,
            said: String::new(),
        };
        assert!(!answer(StatusCode::NOT_FOUND).is_passing());
        assert!(answer(StatusCode::TOO_MANY_REQUESTS).is_passing());
        assert!(answer(StatusCode::BAD_GATEWAY).is_passing());
    }
}

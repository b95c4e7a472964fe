//! The kubelet's checkpoint, asked for through the API server's node proxy.

use std::time::Duration;

use kube::Client;
use serde::Deserialize;
use shadow_protocol::observation::Archive;
use tokio::time::Instant;

/// How long the kubelet may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubelet does not know the call.
    #[error(
        "checkpoint of container {container} of pod {pod} on node {node}: the kubelet has no \
         checkpoint API; switch on its feature gate ContainerCheckpoint and use a runtime that \
         can checkpoint (CRI-O with enable_criu_support)"
    )]
    Unsupported {
        /// Node.
        node: String,
        /// Pod.
        pod: String,
        /// Container.
        container: String,
    },
    /// The operator may not ask.
    #[error(
        "checkpoint on node {node}: the operator lacks the right to nodes/proxy or \
         nodes/checkpoint; apply config/rbac/role.yaml"
    )]
    Forbidden {
        /// Node.
        node: String,
    },
    /// The runtime tried and failed.
    #[error("checkpoint of container {container} of pod {pod} on node {node} failed: {answer}")]
    Failed {
        /// Node.
        node: String,
        /// Pod.
        pod: String,
        /// Container.
        container: String,
        /// The kubelet's words.
        answer: String,
    },
    /// No answer in time.
    #[error("checkpoint on node {node}: no answer within {} s", PATIENCE.as_secs())]
    Timeout {
        /// Node.
        node: String,
    },
}

impl Error {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Unsupported { .. } => "CheckpointUnsupported",
            Error::Forbidden { .. } => "CheckpointForbidden",
            Error::Failed { .. } => "CheckpointFailed",
            Error::Timeout { .. } => "CheckpointTimeout",
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    items: Vec<String>,
}

/// Checkpoints `container` of `namespace`/`pod` on `node`. The process goes on afterwards.
pub async fn checkpoint(
    client: &Client,
    node: &str,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Archive, Error> {
    let failed = |answer: String| Error::Failed {
        node: node.to_owned(),
        pod: pod.to_owned(),
        container: container.to_owned(),
        answer,
    };
    let path = format!(
        "/api/v1/nodes/{node}/proxy/checkpoint/{namespace}/{pod}/{container}?timeout={}",
        PATIENCE.as_secs()
    );
    let request =
        http::Request::post(path).body(Vec::new()).map_err(|error| failed(error.to_string()))?;
    let begun = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, client.request_text(request))
        .await
        .map_err(|_| Error::Timeout { node: node.to_owned() })?
        .map_err(|error| translate(error, node, pod, container))?;
    let answer: Answer = serde_json::from_str(&answer)
        .map_err(|_| failed(format!("unexpected answer {answer:?}")))?;
    let path = answer
        .items
        .into_iter()
        .next()
        .ok_or_else(|| failed("the kubelet named no archive".to_owned()))?;
    let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Archive { path, millis })
}

/// The kubelet answers 404 both without the feature gate and for an unknown container, and 500
/// with the runtime's words.
fn translate(error: kube::Error, node: &str, pod: &str, container: &str) -> Error {
    let (node, pod, container) = (node.to_owned(), pod.to_owned(), container.to_owned());
    match error {
        kube::Error::Api(status) if status.code == 404 || status.code == 501 => {
            Error::Unsupported { node, pod, container }
        }
        kube::Error::Api(status) if status.code == 403 => Error::Forbidden { node },
        // containerd's words, and CRI-O's without enable_criu_support.
        kube::Error::Api(status)
            if ["not support", "support not available"]
                .iter()
                .any(|words| status.message.contains(words)) =>
        {
            Error::Unsupported { node, pod, container }
        }
        kube::Error::Api(status) => {
            Error::Failed { node, pod, container, answer: cause(&status.message) }
        }
        other => Error::Failed { node, pod, container, answer: other.to_string() },
    }
}

/// The runtime wraps its cause in the whole command line, several times; the end of it says what
/// happened.
fn cause(answer: &str) -> String {
    const LONGEST: usize = 400;
    let answer = answer.trim();
    if answer.len() <= LONGEST {
        return answer.to_owned();
    }
    let start = answer.ceil_char_boundary(answer.len() - LONGEST);
    format!("…{}", &answer[start..])
}

#[cfg(test)]
mod tests {
    use super::cause;

    #[test]
    fn a_long_answer_keeps_its_end() {
        let answer = format!("{}CRIU failed", "x".repeat(2_000));
        assert!(cause(&answer).ends_with("CRIU failed"));
        assert!(cause(&answer).len() < 450);
        assert_eq!(cause(" short "), "short");
    }
}

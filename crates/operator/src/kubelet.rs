//! The kubelet's checkpoint, asked for through the API server's node proxy.
//!
//! The kubelet answers with plain text that wraps the runtime's, which wraps CRIU's: what happened is
//! unwrapped here, and sorted into what another try may mend and what it won't.

use std::fmt;
use std::time::Duration;

use kube::Client;
use kube::core::Status;
use serde::Deserialize;
use shadow_protocol::observation::Archive;
use tokio::time::Instant;

use crate::observe::chain;

/// How long the kubelet may take for one checkpoint.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// The container that is checkpointed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Node.
    pub node: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Pod.
    pub pod: String,
    /// Container.
    pub container: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} of pod {} on node {}", self.container, self.pod, self.node)
    }
}

/// Why there is no checkpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The kubelet does not know the call.
    #[error(
        "checkpoint of {at}: the kubelet has no checkpoint API (it answers {answer:?}); switch on \
         its feature gate ContainerCheckpoint"
    )]
    NoApi {
        /// Of what.
        at: Place,
        /// The kubelet's words.
        answer: String,
    },
    /// The runtime can't checkpoint.
    #[error(
        "checkpoint of {at}: the runtime can't checkpoint (it answers {answer:?}); install CRIU on \
         the node and switch it on, in CRI-O with enable_criu_support = true"
    )]
    NoCriu {
        /// Of what.
        at: Place,
        /// The runtime's words.
        answer: String,
    },
    /// The operator may not ask.
    #[error(
        "checkpoint on node {node}: {answer}; the operator needs create on nodes/proxy: apply \
         config/rbac/role.yaml; where it has that, the kubelet refuses the API server, whose account \
         there needs create on nodes/checkpoint"
    )]
    Forbidden {
        /// Node.
        node: String,
        /// Who refuses, in his words.
        answer: String,
    },
    /// CRIU tried and gave up.
    #[error(
        "checkpoint of {at} failed: {cause}; CRIU can't dump every kind of state, as sockets other \
         than TCP, UDP, Unix and netlink, open devices, or an io_uring: its log on the node, or \
         CRI-O's, names what it met; have the application close that, or leave the pod where it is"
    )]
    Refused {
        /// Of what.
        at: Place,
        /// The runtime's words.
        cause: String,
    },
    /// It failed for another reason.
    #[error("checkpoint of {at} failed: {cause}; see the kubelet's and the runtime's log there")]
    Failed {
        /// Of what.
        at: Place,
        /// What was said.
        cause: String,
        /// Another try may help.
        passing: bool,
    },
    /// No answer in time.
    #[error(
        "checkpoint of {at}: no answer within {seconds} s; see the kubelet's and the runtime's log \
         there"
    )]
    Timeout {
        /// Of what.
        at: Place,
        /// The limit.
        seconds: u64,
    },
}

impl Error {
    /// One word for conditions and events.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::NoApi { .. } | Error::NoCriu { .. } => "CheckpointUnsupported",
            Error::Forbidden { .. } => "CheckpointForbidden",
            Error::Refused { .. } | Error::Failed { .. } => "CheckpointFailed",
            Error::Timeout { .. } => "CheckpointTimeout",
        }
    }

    /// Whether another try may help. It may then also be that only the answer was lost, and that an
    /// archive nobody knows of is on the node.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Failed { passing, .. } => *passing,
            Error::Timeout { .. } => true,
            Error::NoApi { .. }
            | Error::NoCriu { .. }
            | Error::Forbidden { .. }
            | Error::Refused { .. } => false,
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    items: Vec<String>,
}

/// Checkpoints the container at `at`, within `patience`. The process goes on afterwards.
pub async fn checkpoint(client: &Client, at: &Place, patience: Duration) -> Result<Archive, Error> {
    let failed = |cause: String| Error::Failed { at: at.clone(), cause, passing: false };
    let Place { node, namespace, pod, container } = at;
    let seconds = patience.as_secs();
    let path = format!(
        "/api/v1/nodes/{node}/proxy/checkpoint/{namespace}/{pod}/{container}?timeout={seconds}"
    );
    let request =
        http::Request::post(path).body(Vec::new()).map_err(|error| failed(error.to_string()))?;
    let begun = Instant::now();
    let answer = tokio::time::timeout(patience, client.request_text(request))
        .await
        .map_err(|_| Error::Timeout { at: at.clone(), seconds })?
        .map_err(|error| translate(&error, at))?;
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

/// Words of crun and runc when CRIU has tried.
const TRIED: [&str; 2] = ["CRIU checkpointing failed", "criu failed"];
/// Words by which runtimes say that they can't: containerd and gRPC; CRI-O without
/// `enable_criu_support`, or with a CRIU that is missing or too old.
const UNSUPPORTED: [&str; 4] =
    ["not support", "Unimplemented", "support not available", "check for CRIU"];

fn translate(error: &kube::Error, at: &Place) -> Error {
    let at = at.clone();
    let kube::Error::Api(status) = error else {
        return Error::Failed { at, cause: chain(error), passing: true };
    };
    let cause = cause(&status.message);
    let says = |words: &[&str]| words.iter().any(|words| status.message.contains(words));
    match status.code {
        403 => Error::Forbidden { node: at.node, answer: cause },
        404 if !is_missing(status) => Error::NoApi { at, answer: cause },
        _ if says(&TRIED) => Error::Refused { at, cause },
        501 => Error::NoCriu { at, answer: cause },
        _ if says(&UNSUPPORTED) => Error::NoCriu { at, answer: cause },
        // A kubelet that has just started does not know its pods yet. What fills the disk must not be
        // tried again.
        404 | 408 | 429 | 500.. if !says(&["no space left"]) => {
            Error::Failed { at, cause, passing: true }
        }
        _ => Error::Failed { at, cause, passing: false },
    }
}

/// Whether a 404 is about the pod, the container (by the kubelet) or the node (by the API server).
fn is_missing(status: &Status) -> bool {
    status.message.contains("does not exist") || status.reason == "NotFound"
}

/// What happened. The kubelet repeats the request, gRPC adds its code, and CRI-O the whole command
/// line, twice.
fn cause(answer: &str) -> String {
    const LONGEST: usize = 400;
    let words = answer.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut text = words.as_str();
    if let Some(inner) = text.strip_prefix("checkpointing of ").and_then(|t| t.strip_suffix(')')) {
        text = inner.split_once(" failed (").map_or(text, |(_, inner)| inner);
    }
    text = text.split_once(" desc = ").map_or(text, |(_, inner)| inner);
    text = text.rsplit("` failed: ").next().unwrap_or(text);
    text = text.split(": exit status").next().unwrap_or(text).trim();
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    let start = text.ceil_char_boundary(text.len() - LONGEST);
    format!("…{}", &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Place {
        Place {
            node: "worker-2".to_owned(),
            namespace: "default".to_owned(),
            pod: "consumer-0".to_owned(),
            container: "consumer".to_owned(),
        }
    }

    /// The kubelet's plain text, as the client understands it.
    fn kubelets(code: u16, text: &str) -> Error {
        let status = Status::failure(text, "Failed to parse error data").with_code(code);
        translate(&kube::Error::Api(status.boxed()), &at())
    }

    /// As CRI-O 1.36 (`internal/oci/runtime_oci.go`) and the kubelet (`server.go`) wrap it.
    fn crio(desc: &str) -> String {
        format!(
            "checkpointing of default/consumer-0/consumer failed (rpc error: code = Unknown desc = \
             {desc})"
        )
    }

    /// The runtime's command line around what it printed.
    fn ran(printed: &str) -> String {
        let args = "checkpoint --file-locks --image-path /var/lib/c/76/userdata/checkpoint \
                    --work-path /var/lib/c/76/userdata --leave-running 76";
        crio(&format!(
            "failed to checkpoint container 76: running \"/usr/bin/crun\" [\"checkpoint\" \
             \"--file-locks\"] failed: `/usr/bin/crun --root /run/crun {args}` failed: {printed} : \
             exit status 1"
        ))
    }

    #[test]
    fn answers_are_sorted_and_their_cause_is_kept() {
        let criu = "CRIU checkpointing failed -52.  Please check CRIU logfile \
                    /var/lib/c/76/userdata/dump.log: Invalid exchange\n";
        for (code, text, reason, passing, words) in [
            (404, "404 page not found\n".to_owned(), "CheckpointUnsupported", false, [
                "the kubelet has no checkpoint API (it answers \"404 page not found\")",
                "feature gate ContainerCheckpoint",
            ]),
            (
                500,
                crio("checkpoint/restore support not available"),
                "CheckpointUnsupported",
                false,
                [
                    "the runtime can't checkpoint (it answers \"checkpoint/restore support not \
                     available\")",
                    "enable_criu_support = true",
                ],
            ),
            (
                500,
                crio(
                    "failed to checkpoint container 76: check for CRIU failed to parse CRIU \
                     version: exec: \"criu\": executable file not found in $PATH",
                ),
                "CheckpointUnsupported",
                false,
                ["executable file not found in $PATH\")", "install CRIU on the node"],
            ),
            (
                500,
                "checkpointing of a/b/c failed (rpc error: code = Unimplemented desc = method \
                 CheckpointContainer not implemented)"
                    .to_owned(),
                "CheckpointUnsupported",
                false,
                ["(it answers \"method CheckpointContainer not implemented\")", "install CRIU"],
            ),
            (500, ran(criu), "CheckpointFailed", false, [
                "on node worker-2 failed: CRIU checkpointing failed -52. Please check CRIU logfile \
                 /var/lib/c/76/userdata/dump.log: Invalid exchange; CRIU can't dump",
                "sockets other than TCP",
            ]),
            (500, ran("cannot open `/run/crun/76`: No such file"), "CheckpointFailed", true, [
                "failed: cannot open `/run/crun/76`: No such file; see",
                "the runtime's log there",
            ]),
            (500, ran("CRIU checkpointing failed -95: Operation not supported"), "CheckpointFailed", false, [
                "failed: CRIU checkpointing failed -95: Operation not supported; CRIU can't dump",
                "or leave the pod where it is",
            ]),
            (500, ran("criu failed: type NOTIFY errno 0 log file: /run/dump.log"), "CheckpointFailed", false, [
                "failed: criu failed: type NOTIFY errno 0 log file: /run/dump.log; CRIU can't dump",
                "or leave the pod where it is",
            ]),
            (500, crio("write /var/lib/kubelet: no space left on device"), "CheckpointFailed", false, [
                "failed: write /var/lib/kubelet: no space left on device; see",
                "on node worker-2",
            ]),
            (
                503,
                "error trying to reach service: dial tcp 10.0.0.2:10250: connect: connection refused"
                    .to_owned(),
                "CheckpointFailed",
                true,
                ["failed: error trying to reach service: dial tcp", "connection refused; see"],
            ),
            (404, "pod does not exist\n".to_owned(), "CheckpointFailed", true, [
                "failed: pod does not exist; see",
                "container consumer of pod consumer-0",
            ]),
            (400, "no".to_owned(), "CheckpointFailed", false, ["failed: no; see", "consumer-0"]),
            (403, "Forbidden".to_owned(), "CheckpointForbidden", false, [
                "checkpoint on node worker-2",
                "config/rbac/role.yaml",
            ]),
        ] {
            let error = kubelets(code, &text);
            let said = error.to_string();
            assert_eq!((error.reason(), error.is_passing()), (reason, passing), "{said}");
            for words in words {
                assert!(said.contains(words), "{words} is missing in: {said}");
            }
            for noise in ["--work-path", "exit status", "rpc error", "/usr/bin/crun"] {
                assert!(!said.contains(noise), "{noise} is in: {said}");
            }
        }
    }

    #[test]
    fn a_node_that_the_api_server_does_not_know_is_not_an_old_kubelet() {
        let status = Status::failure("nodes \"worker-2\" not found", "NotFound").with_code(404);
        let error = translate(&kube::Error::Api(status.boxed()), &at());
        assert!(matches!(error, Error::Failed { passing: true, .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_kubelet_that_stays_silent_is_asked_again() {
        let silent = |request: http::Request<kube::client::Body>| {
            let path = "/api/v1/nodes/worker-2/proxy/checkpoint/default/consumer-0/consumer";
            assert_eq!(request.uri().path(), path);
            assert_eq!(request.uri().query(), Some("timeout=30"));
            std::future::pending::<Result<http::Response<kube::client::Body>, kube::Error>>()
        };
        let client = Client::new(tower::service_fn(silent), "default");
        let error = checkpoint(&client, &at(), Duration::from_secs(30)).await.unwrap_err();
        assert_eq!((error.reason(), error.is_passing()), ("CheckpointTimeout", true));
        assert!(error.to_string().contains("no answer within 30 s"), "{error}");
    }

    #[test]
    fn a_long_answer_keeps_its_end() {
        let answer = format!("{}CRIU failed", "x".repeat(2_000));
        assert!(cause(&answer).ends_with("CRIU failed"));
        assert!(cause(&answer).len() < 450);
        assert_eq!(cause(" short "), "short");
    }
}

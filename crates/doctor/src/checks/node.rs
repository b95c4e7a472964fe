//! The node, its kubelet, its runtime's version, and the agent.

use crate::facts::{Agent, Node};
use crate::finding::{Finding, Question};
use crate::version::Version;

/// The kubelet's feature gate is on by default from here.
const GATE_DEFAULT: Version = Version(1, 30, 0);
/// The kubelet has the gate, and CRI-O restores, from here.
const FIRST: Version = Version(1, 25, 0);
/// containerd restores from here, and no more from there.
const CONTAINERD: (Version, Version) = (Version(2, 1, 0), Version(2, 4, 0));

pub fn check(subject: &str, node: &Node) -> Vec<Finding> {
    vec![ready(subject, node), kubelet(subject, node), runtime(subject, node), agent(subject, node)]
}

fn ready(subject: &str, node: &Node) -> Finding {
    let question = Question { check: "ready", subject };
    if node.ready {
        return question.ok("it is Ready");
    }
    question.warning(
        "it is not Ready: no pod can be moved from it or to it",
        "see the node's conditions: kubectl describe node",
    )
}

fn kubelet(subject: &str, node: &Node) -> Finding {
    let question = Question { check: "kubelet-checkpoint", subject };
    let remedy = "set featureGates: {ContainerCheckpoint: true} in the kubelet's configuration and \
                  restart it";
    super::answer(question, node.gate.clone(), |gate| {
        let version = Version::find(node.kubelet.as_str());
        match (gate, version) {
            (Some(true), _) => question.ok("feature gate ContainerCheckpoint is on"),
            (Some(false), _) => {
                question.failure("feature gate ContainerCheckpoint is switched off", remedy)
            }
            (None, Some(version)) if version >= GATE_DEFAULT => question.ok(format!(
                "feature gate ContainerCheckpoint is on by default in {}",
                node.kubelet
            )),
            (None, Some(version)) if version >= FIRST => question.failure(
                format!("feature gate ContainerCheckpoint is off by default in {}", node.kubelet),
                remedy,
            ),
            _ => question.failure(
                format!("kubelet {} has no checkpoint API", node.kubelet),
                format!("use Kubernetes {GATE_DEFAULT} or later"),
            ),
        }
    })
}

fn runtime(subject: &str, node: &Node) -> Finding {
    let question = Question { check: "runtime", subject };
    let runtime = &node.runtime;
    let remedy = "use CRI-O, with CRIU and crun";
    let version = Version::find(runtime.as_str());
    match (runtime.as_str().split_once("://").map(|(name, _)| name), version) {
        (Some("cri-o"), Some(version)) if version >= FIRST => {
            question.ok(format!("{runtime} restores checkpoints"))
        }
        (Some("cri-o"), Some(_)) => question
            .failure(format!("{runtime} can't restore a checkpoint"), format!("use CRI-O {FIRST} or later")),
        (Some("containerd"), Some(version)) if version < CONTAINERD.0 => {
            question.failure(format!("{runtime} can't restore a checkpoint"), remedy)
        }
        (Some("containerd"), Some(version)) if version >= CONTAINERD.1 => question.failure(
            format!("{runtime} can't restore a checkpoint any more: 2.4 has dropped it"),
            remedy,
        ),
        (Some("containerd"), Some(_)) => question.warning(
            format!(
                "{runtime} restores checkpoints, but this version of SHADOW is not tested with it, and \
                 it pulls the base image without the pod's pull secrets"
            ),
            remedy,
        ),
        // As long as the runtime does not answer.
        _ if runtime.as_str().ends_with("://Unknown") => question
            .unknown(&format!("{runtime}: its kubelet could not ask the runtime a moment ago").into()),
        _ => question.failure(format!("{runtime} is not known to restore checkpoints"), remedy),
    }
}

fn agent(subject: &str, node: &Node) -> Finding {
    let question = Question { check: "agent", subject };
    super::answer(question, node.agent.clone(), |agent| match agent {
        Agent::Absent => question.note("no pod of the agent; transfer mode Registry works without"),
        Agent::Unready => question.warning(
            "the agent's pod is not Ready; only transfer mode Direct needs it",
            "see its log: kubectl -n ms2m-system logs -l app.kubernetes.io/name=ms2m-agent",
        ),
        Agent::Ready => question.ok("the agent's pod is Ready"),
    })
}

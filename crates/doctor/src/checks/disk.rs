//! Room for a checkpoint: in the runtime's storage, and once more as an archive in the kubelet's folder.

use crate::facts::{Facts, Known, Node};
use crate::finding::{Finding, Question};

/// Assumed of a container whose memory is not known.
const CHECKPOINT: u64 = 256_000_000;
/// With less left the kubelet is near to evicting pods.
const SPARE: u64 = 1_000_000_000;

pub fn check(subject: &str, node: &Node, facts: &Facts) -> Vec<Finding> {
    let memory = facts.pod.as_ref().and_then(|patient| patient.memory.clone().ok());
    let need = memory.unwrap_or(CHECKPOINT);
    let checkpoints = super::reported(node, |report| &report.checkpoints_free);
    let storage = super::reported(node, |report| &report.storage_free);
    let of = |check, what, free: Known<&u64>| {
        let question = Question { check, subject };
        super::answer(question, free, |free| room(question, what, *free, need))
    };
    vec![
        of("disk-checkpoints", "the kubelet's checkpoints", checkpoints),
        of("disk-storage", "the runtime's storage", storage),
    ]
}

fn room(question: Question<'_>, what: &str, free: u64, need: u64) -> Finding {
    let remedy = "free some, or give the node a larger disk: a checkpoint is as large as the memory of \
                  its processes, and is kept twice for a while";
    let reason = format!("{} MB are free for {what}", free / 1_000_000);
    if free < need.saturating_mul(2) {
        let need = need.div_ceil(1_000_000);
        return question.failure(
            format!("{reason}, and a checkpoint of {need} MB needs twice its size"),
            remedy,
        );
    }
    if free - need * 2 < SPARE {
        return question.warning(format!("{reason}: little more than a checkpoint needs"), remedy);
    }
    question.ok(reason)
}

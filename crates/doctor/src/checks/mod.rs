//! Checks: facts in, findings out. Pure.

mod alike;
mod cluster;
mod criu;
mod disk;
mod node;
pub mod pod;
mod process;
mod restore;

use crate::facts::{Facts, Known, Node, Patient, Report};
use crate::finding::{Finding, Question, Verdict};
use crate::text::Text;

/// Name of the cluster among the subjects.
const CLUSTER: &str = "cluster";

/// Everything that is to be said, the cluster first, then the pod, then node by node.
pub fn all(facts: &Facts) -> Vec<Finding> {
    let mut findings = cluster::check(facts);
    if let Some(patient) = &facts.pod {
        let subject = name_of(patient);
        findings.extend(pod::check(&subject, patient));
        findings.extend(process::check(&subject, process_of(facts, patient)));
    }
    for node in &facts.nodes {
        let subject = format!("node {}", node.name);
        findings.extend(node::check(&subject, node));
        findings.extend(restore::check(&subject, node, namespace(facts)));
        findings.extend(criu::check(&subject, node));
        findings.extend(alike::check(&subject, node, facts));
        findings.extend(disk::check(&subject, node, facts));
    }
    findings
}

/// What a node must pass to have a pod checkpointed.
const AT_SOURCE: [&str; 6] =
    ["kubelet-checkpoint", "checkpoint", "criu", "criu-check", "crun", "disk-checkpoints"];
/// What a node must pass to have it restored.
const AT_TARGET: [&str; 10] = [
    "runtime",
    "restore",
    "signature-policy",
    "criu",
    "criu-check",
    "crun",
    "cgroup-version",
    "kernel",
    "cpu-features",
    "disk-storage",
];
/// CRIU's options concern both ends.
const AT_BOTH: &str = "criu-options";

/// What matters when the named pod goes from its node to `target`: nothing of the cluster, of a node
/// only what it is needed for, and nothing that is well.
pub fn of_move(facts: &Facts, target: &str) -> Vec<Finding> {
    let from = source(facts).map(|name| format!("node {name}"));
    let to = format!("node {target}");
    let mut findings = all(facts);
    findings.retain(|it| {
        let matters = match it.subject.as_str() {
            CLUSTER => false,
            subject if subject == to => AT_TARGET.contains(&it.check) || it.check == AT_BOTH,
            subject if Some(subject) == from.as_deref() => {
                AT_SOURCE.contains(&it.check) || it.check == AT_BOTH
            }
            subject => subject.starts_with("pod "),
        };
        matters && !matches!(it.verdict, Verdict::Ok | Verdict::Note)
    });
    findings
}

fn name_of(patient: &Patient) -> String {
    let metadata = &patient.pod.metadata;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("pod {}/{}", part(&metadata.namespace), part(&metadata.name))
}

fn namespace(facts: &Facts) -> Option<&str> {
    facts.pod.as_ref()?.pod.metadata.namespace.as_deref()
}

/// The node that the named pod is on.
fn source(facts: &Facts) -> Option<&str> {
    facts.pod.as_ref()?.pod.spec.as_ref()?.node_name.as_deref()
}

fn process_of<'a>(facts: &'a Facts, patient: &Patient) -> Known<&'a crate::facts::Process> {
    let name = patient.pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let name = name.ok_or_else(|| Text::from("the pod is on no node"))?;
    let node = facts.nodes.iter().find(|node| node.name == name);
    let node = node.ok_or_else(|| Text::from(format!("node {name} was not looked at")))?;
    let process = node.report.as_ref().map_err(Clone::clone)?.process.as_ref();
    let process = process.ok_or_else(|| Text::from("its processes were not looked at"))?;
    process.as_ref().map_err(Clone::clone)
}

/// `1 port`, `2 ports`
fn counted(count: u32, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// What a node's report says of something, or why it says nothing.
fn reported<'a, T>(node: &'a Node, of: impl FnOnce(&'a Report) -> &'a Known<T>) -> Known<&'a T> {
    of(node.report.as_ref().map_err(Clone::clone)?).as_ref().map_err(Clone::clone)
}

/// The answer, or that it is not known.
fn answer<T>(question: Question<'_>, fact: Known<T>, of: impl FnOnce(T) -> Finding) -> Finding {
    match fact {
        Ok(fact) => of(fact),
        Err(why) => question.unknown(&why),
    }
}

#[cfg(test)]
mod tests;

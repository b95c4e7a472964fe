//! Doctor's checks of the move, before anything is touched: what the source's node and the target's are
//! able to do, and what CRIU will find in the source's processes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Client, ResourceExt};
use shadow_doctor::checks::of_move;
use shadow_doctor::finding::{Finding, Verdict};
use shadow_doctor::gather::{Move, facts_of_move};
use shadow_protocol::observation::{self, Preflight};
use shadow_protocol::pending;
use shadow_protocol::spec::Spec;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use super::Migration;
use crate::problems::sentence;

/// Where the image has to be pulled first, and that takes long, a migration goes on without.
const LONGEST: Duration = Duration::from_secs(10);

/// Annotation of a migration: names of checks that don't refuse it, separated by commas. For who knows
/// better.
pub const IGNORED: &str = "migration.ms2m.io/ignore-checks";

/// A look at the way to a node, under way. Who has no need of it any more lets it end by itself, so that
/// no pod of it stays.
pub struct Looking {
    target: String,
    begun: Instant,
    findings: oneshot::Receiver<Vec<Finding>>,
}

/// What came of a look at the way to a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Why the pod can't leave.
    pub source: Vec<String>,
    /// Why it can't come to that node.
    pub target: Vec<String>,
    /// What may go wrong, and what is not known.
    pub doubts: Vec<String>,
}

impl Looked {
    fn nothing(source: &str, target: &str) -> Self {
        let seconds = LONGEST.as_secs();
        let doubt =
            format!("nodes {source} and {target} could not be looked at within {seconds} s");
        Self { doubts: vec![doubt], ..Self::default() }
    }

    fn of(findings: &[Finding], target: &str, ignored: &BTreeSet<String>, asked: bool) -> Self {
        let mut looked = Self::default();
        let mut unknown: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        let there = format!("node {target}");
        for finding in findings {
            let Finding { check, subject, reason, .. } = finding;
            let words = format!("check {check} of {subject}: {}", sentence(finding));
            match finding.verdict {
                Verdict::Failure if ignored.contains(*check) => looked.doubts.push(words),
                Verdict::Failure if *subject == there => looked.target.push(words),
                Verdict::Failure => looked.source.push(words),
                // Who asked for no look at the nodes knows that.
                Verdict::Unknown if asked => {
                    unknown.entry((subject, reason)).or_default().push(check);
                }
                // The volumes are looked at elsewhere, and what is in them.
                Verdict::Warning if *check != "volumes" => looked.doubts.push(words),
                _ => {}
            }
        }
        let open = unknown.iter().map(|((subject, why), checks)| {
            format!("not known of {subject}: {}: {why}", checks.join(", "))
        });
        looked.doubts.extend(open);
        looked
    }
}

impl Migration {
    /// Begins to look at the way to the node that would be chosen now.
    fn begin_to_look(&mut self, spec: &Spec, pod: &Pod, found: &Preflight) {
        let from = pod.spec.as_ref().and_then(|it| it.node_name.clone()).unwrap_or_default();
        let Some(target) = pending::target(spec, &from, &found.nodes) else { return };
        let under_way = self.memory.looking.as_ref().is_some_and(|it| it.target == target.name);
        if under_way || self.memory.looked.contains_key(&target.name) {
            return;
        }
        let cluster = &self.context.cluster;
        let (Some(here), Some(there)) = (cluster.node(&from), cluster.node(&target.name)) else {
            return;
        };
        let first = || pod.spec.as_ref()?.containers.first().map(|it| it.name.clone());
        let container = spec.container.clone().or_else(first).unwrap_or_default();
        let memory = self.memory.usage.as_ref().and_then(|usage| usage.memory(&container));
        let options = &self.context.options;
        let image = (!options.no_probe).then(|| options.transfer_image.clone());
        let nodes = [(*here).clone(), (*there).clone()];
        let asked = ask(cluster.client.clone(), pod.clone(), container, memory, nodes, image);
        let ring = cluster.ring();
        let (tell, findings) = oneshot::channel();
        tokio::spawn(async move {
            // Nobody may listen any more.
            let _ = tell.send(asked.await);
            ring();
        });
        self.memory.looking =
            Some(Looking { target: target.name.clone(), begun: Instant::now(), findings });
    }

    /// Says what has been seen of the node that would be chosen, or looks at it.
    pub(super) fn look(&mut self, spec: &Spec, pod: &Pod, found: &mut Preflight) {
        let from = pod.spec.as_ref().and_then(|it| it.node_name.clone()).unwrap_or_default();
        while let Some(target) = pending::target(spec, &from, &found.nodes) {
            let target = target.name.clone();
            if let Some(looked) = self.memory.looked.get(&target) {
                found.checks = Some(looked.source.first().map_or(Ok(()), |why| Err(why.clone())));
                return;
            }
            self.begin_to_look(spec, pod, found);
            let Some(looking) = &mut self.memory.looking else { return };
            let asked = !self.context.options.no_probe;
            let looked = match looking.findings.try_recv() {
                Ok(findings) => Looked::of(&findings, &target, &self.ignored(), asked),
                Err(TryRecvError::Empty) if looking.begun.elapsed() < LONGEST => return,
                Err(_) => Looked::nothing(&from, &target),
            };
            self.memory.looking = None;
            self.memory.looked.insert(target, looked);
            self.add_problems(&mut found.nodes);
            self.choose(spec, pod, &mut found.nodes);
        }
    }

    /// What was seen of the nodes that were looked at.
    pub(super) fn add_problems(&self, nodes: &mut [observation::Node]) {
        for node in nodes {
            let looked = self.memory.looked.get(&node.name);
            for problem in looked.iter().flat_map(|looked| &looked.target) {
                if !node.problems.contains(problem) {
                    node.problems.push(problem.clone());
                }
            }
        }
    }

    fn ignored(&self) -> BTreeSet<String> {
        let given = self.object.annotations().get(IGNORED);
        let names = given.iter().flat_map(|names| names.split(','));
        names.map(|name| name.trim().to_owned()).collect()
    }
}

async fn ask(
    client: Client,
    pod: Pod,
    container: String,
    memory: Option<u64>,
    nodes: [Node; 2],
    image: Option<String>,
) -> Vec<Finding> {
    let target = nodes[1].name_any();
    let about = Move { pod, container, memory, nodes, probe_image: image.as_deref() };
    of_move(&Box::pin(facts_of_move(&client, about)).await, &target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: &'static str, subject: &str, verdict: Verdict) -> Finding {
        let remedy = (verdict != Verdict::Unknown).then(|| "mend it".to_owned());
        Finding {
            check,
            subject: subject.to_owned(),
            verdict,
            reason: "it is so".to_owned(),
            remedy,
        }
    }

    #[test]
    fn failures_are_told_by_where_they_are_and_the_ignored_are_doubts() {
        let findings = [
            finding("criu", "node a", Verdict::Failure),
            finding("kernel", "node b", Verdict::Failure),
            finding("cpu-features", "node b", Verdict::Failure),
            finding("io-uring", "pod x/y", Verdict::Failure),
            finding("volumes", "pod x/y", Verdict::Warning),
            finding("criu", "node b", Verdict::Unknown),
            finding("restore", "node b", Verdict::Unknown),
        ];
        let ignored = BTreeSet::from(["cpu-features".to_owned()]);
        let looked = Looked::of(&findings, "b", &ignored, true);
        assert_eq!(looked.target, ["check kernel of node b: it is so; mend it"]);
        assert_eq!(
            looked.source,
            [
                "check criu of node a: it is so; mend it",
                "check io-uring of pod x/y: it is so; mend it"
            ]
        );
        assert_eq!(
            looked.doubts,
            [
                "check cpu-features of node b: it is so; mend it",
                "not known of node b: criu, restore: it is so"
            ]
        );
        let looked = Looked::of(&findings, "b", &ignored, false);
        assert_eq!(looked.doubts, ["check cpu-features of node b: it is so; mend it"]);
    }
}

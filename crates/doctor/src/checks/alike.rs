//! What must be alike on the nodes: a process goes on with what it has found out about its machine.

use std::collections::BTreeSet;

use crate::facts::{Facts, Node};
use crate::finding::{Finding, Question};
use crate::text::Text;
use crate::version::Version;

/// Features of a CPU that are named in one finding.
const NAMED: usize = 12;
/// What the kernel lists as a feature of the CPU and no program runs on: what it does itself about the
/// CPU's weaknesses, what serves virtual machines, and power.
const NOT_FOR_PROGRAMS: [&str; 24] = [
    "pti",
    "ssbd",
    "ibrs",
    "ibpb",
    "stibp",
    "ibrs_enhanced",
    "vmx",
    "svm",
    "ept",
    "vpid",
    "ept_ad",
    "tpr_shadow",
    "flexpriority",
    "vnmi",
    "npt",
    "hypervisor",
    "arat",
    "ida",
    "pln",
    "pts",
    "hwp",
    "epb",
    "dtherm",
    "monitor",
];

pub fn check(subject: &str, node: &Node, facts: &Facts) -> Vec<Finding> {
    // Of a named pod only the way away from its node matters.
    let from = super::source(facts);
    let others: Vec<&Node> = (facts.nodes.iter())
        .filter(|other| other.name != node.name && from.is_none_or(|from| other.name == from))
        .collect();
    let cgroup = Question { check: "cgroup-version", subject };
    let kernel = Question { check: "kernel", subject };
    let cpu = Question { check: "cpu-features", subject };
    vec![
        cgroups(cgroup, node, &others),
        kernels(kernel, node, &others),
        cpus(cpu, node, &others, from.is_some()),
    ]
}

fn cgroups(question: Question<'_>, node: &Node, others: &[&Node]) -> Finding {
    super::answer(question, super::reported(node, |report| &report.cgroup), |version| {
        let different = others.iter().filter(|other| {
            super::reported(other, |report| &report.cgroup).is_ok_and(|other| other != version)
        });
        let different = names(different);
        if different.is_empty() {
            return question.ok(format!("cgroups of version {version}"));
        }
        question.failure(
            format!(
                "cgroups of version {version}, and of another on {different}: nothing is \
                 restored between them"
            ),
            "use the same version on all nodes, best 2 (systemd.unified_cgroup_hierarchy=1)",
        )
    })
}

fn kernels(question: Question<'_>, node: &Node, others: &[&Node]) -> Finding {
    let foreign = names(others.iter().filter(|other| other.architecture != node.architecture));
    if !foreign.is_empty() {
        return question.failure(
            format!("architecture {}, and another on {foreign}", node.architecture),
            "move pods between nodes of one architecture only",
        );
    }
    let Some(own) = Version::find(node.kernel.as_str()) else {
        let why = format!("kernel version {:?} is not understood", node.kernel.as_str());
        return question.unknown(&Text::from(why));
    };
    let newer = names(others.iter().filter(|other| {
        let other = Version::find(other.kernel.as_str());
        other.is_some_and(|Version(major, minor, _)| (major, minor) > (own.0, own.1))
    }));
    if newer.is_empty() {
        return question.ok(format!("kernel {} is not older than the others'", node.kernel));
    }
    question.warning(
        format!(
            "kernel {} is older than on {newer}: CRIU may find less here than a process had there",
            node.kernel
        ),
        "use one kernel on all nodes, or move pods to newer ones only",
    )
}

fn cpus(question: Question<'_>, node: &Node, others: &[&Node], named: bool) -> Finding {
    super::answer(question, super::reported(node, |report| &report.cpu), |own| {
        let lacks = |other: &&Node| {
            let theirs = super::reported(other, |report| &report.cpu).ok()?;
            let missing: Vec<&str> =
                theirs.difference(own).map(Text::as_str).filter(|it| serves(it)).collect();
            let more = missing.len().saturating_sub(NAMED);
            let list = missing.iter().take(NAMED).copied().collect::<Vec<_>>().join(" ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            (!missing.is_empty()).then(|| format!("{list}{more} of {}", other.name))
        };
        let missing: Vec<String> = others.iter().filter_map(lacks).collect();
        let unknown =
            names(others.iter().filter(|it| super::reported(it, |report| &report.cpu).is_err()));
        let remedy = "move pods to nodes that have all that theirs has, or give virtual machines \
                      one CPU model";
        match (missing.is_empty(), named) {
            (true, _) if !unknown.is_empty() => question
                .unknown(&Text::from(format!("the CPU's features are not known of {unknown}"))),
            (true, _) => question.ok("its CPU has all that the others' have"),
            (false, true) => question.failure(
                format!(
                    "its CPU lacks {}: the pod would crash, or not be restored",
                    missing.join("; ")
                ),
                remedy,
            ),
            (false, false) => question.warning(
                format!(
                    "its CPU lacks {}: what runs there may crash here, or not be restored",
                    missing.join("; ")
                ),
                remedy,
            ),
        }
    })
}

fn serves(feature: &str) -> bool {
    !NOT_FOR_PROGRAMS.contains(&feature)
}

fn names<'a>(nodes: impl Iterator<Item = &'a &'a Node>) -> String {
    let names: BTreeSet<&str> = nodes.map(|node| node.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

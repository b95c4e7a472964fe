//! Whether the runtime is allowed to restore.

use crate::facts::{Containerd, Crio, Node};
use crate::finding::{Finding, Question};
use crate::version::Version;

/// CRI-O asks for a level of its own from these on, and by default only checkpoints: the minor version,
/// and its first patch release. Earlier ones got it later, or not yet.
const LEVELS: [(u32, u32); 3] = [(34, 14), (35, 9), (36, 6)];
const LEVELS_ALWAYS: Version = Version(1, 37, 0);
const LEVELS_MAYBE: Version = Version(1, 29, 0);
/// containerd restores by default before these.
const SWITCHES: [Version; 2] = [Version(2, 2, 7), Version(2, 3, 4)];

/// And not at all from here: a finding of the runtime's version.
const GONE: Version = Version(2, 4, 0);

const SET_LEVEL: &str = "set container_level_enabled = \"checkpoint_restore\" in \
                         [crio.checkpoint_restore] in /etc/crio/crio.conf.d and restart CRI-O";

const SUPPORT: &str =
    "set enable_criu_support = true in [crio.runtime] in /etc/crio/crio.conf.d and restart CRI-O";

pub fn check(subject: &str, node: &Node, namespace: Option<&str>) -> Vec<Finding> {
    let runtime = node.runtime.as_str();
    let question = Question { check: "restore", subject };
    let version = Version::find(runtime).unwrap_or(Version(0, 0, 0));
    if runtime.starts_with("cri-o://") {
        let crio = super::reported(node, |report| &report.crio);
        let policy = Question { check: "signature-policy", subject };
        let support = Question { check: "checkpoint", subject };
        return vec![
            super::answer(support, crio.clone(), |crio| crio_checkpoints(support, crio)),
            super::answer(question, crio.clone(), |crio| crio_restores(question, crio, version)),
            super::answer(policy, crio, |crio| signature(policy, crio, namespace)),
        ];
    }
    if runtime.starts_with("containerd://") && version < GONE {
        let containerd = super::reported(node, |report| &report.containerd);
        return vec![super::answer(question, containerd, |containerd| {
            containerd_restores(question, containerd, version)
        })];
    }
    Vec::new()
}

fn crio_checkpoints(question: Question<'_>, crio: &Crio) -> Finding {
    if crio.criu == Some(false) {
        return question
            .failure("CRI-O's enable_criu_support is false: it does not checkpoint", SUPPORT);
    }
    question.ok("CRI-O's enable_criu_support is not switched off")
}

fn crio_restores(question: Question<'_>, crio: &Crio, version: Version) -> Finding {
    if crio.criu == Some(false) {
        return question
            .failure("CRI-O's enable_criu_support is false: it does not restore", SUPPORT);
    }
    let level = crio.level.as_ref().map(crate::text::Text::as_str);
    match (level, levels(version)) {
        (Some("checkpoint_restore"), _) => {
            question.ok("CRI-O's container_level_enabled is checkpoint_restore")
        }
        (_, Some(false)) => question.ok("CRI-O's enable_criu_support is true"),
        (Some(level), _) => question.failure(
            format!(
                "CRI-O's container_level_enabled is {level}: a checkpoint image is started as an \
                 ordinary one"
            ),
            SET_LEVEL,
        ),
        (None, Some(true)) => question.failure(
            format!(
                "CRI-O {version} only checkpoints unless container_level_enabled says otherwise: a \
                 checkpoint image is started as an ordinary one"
            ),
            SET_LEVEL,
        ),
        (None, None) => question.warning(
            format!(
                "CRI-O's enable_criu_support is true, but patch releases of {version} from September \
                 2026 on ask for container_level_enabled, too"
            ),
            SET_LEVEL,
        ),
    }
}

/// Whether this CRI-O asks for the level.
fn levels(version: Version) -> Option<bool> {
    let Version(_, minor, patch) = version;
    if version >= LEVELS_ALWAYS {
        return Some(true);
    }
    match LEVELS.iter().find(|(of, _)| *of == minor) {
        Some((_, first)) => Some(patch >= *first),
        None if version >= LEVELS_MAYBE => None,
        None => Some(false),
    }
}

fn signature(question: Question<'_>, crio: &Crio, namespace: Option<&str>) -> Finding {
    let remedy = "put the policy into /etc/containers/policy.json and leave signature_policy out of \
                  CRI-O's configuration";
    if let Some(policy) = &crio.policy {
        return question.failure(
            format!("CRI-O has signature_policy = {policy}, and refuses to restore with one"),
            remedy,
        );
    }
    let names: Vec<&str> = crio.policies.iter().map(crate::text::Text::as_str).collect();
    match namespace {
        Some(namespace) if names.contains(&namespace) => question.failure(
            format!(
                "namespace {namespace} has a signature policy of its own: CRI-O \
                 restores nothing in it"
            ),
            "remove the namespace's file from CRI-O's signature_policy_dir",
        ),
        None if !names.is_empty() => question.warning(
            format!(
                "CRI-O restores nothing in namespaces with a signature \
                 policy: {}",
                names.join(", ")
            ),
            "remove a namespace's file from CRI-O's signature_policy_dir to move its pods",
        ),
        _ => question.ok("CRI-O has no signature policy of its own"),
    }
}

fn containerd_restores(
    question: Question<'_>,
    containerd: &Containerd,
    version: Version,
) -> Finding {
    let [older, newer] = SWITCHES;
    let off = if version < Version(2, 3, 0) { version >= older } else { version >= newer };
    match (off, containerd.restore) {
        (_, true) => question.ok("containerd's enable_experimental_restore_via_create is true"),
        (false, false) => question.ok(format!("containerd {version} restores by default")),
        (true, false) => question.failure(
            format!("containerd {version} restores only with enable_experimental_restore_via_create"),
            "set it to true in [plugins.'io.containerd.cri.v1.runtime'] in /etc/containerd/config.toml \
             and restart containerd; 2.4 has dropped it",
        ),
    }
}

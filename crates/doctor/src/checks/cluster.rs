//! The cluster: the CRD, the operator's rights, the broker, the registry.

use std::collections::BTreeMap;

use crate::facts::{Broker, Crd, Facts, Registry, Right, Survey};
use crate::finding::{Finding, Question};
use crate::text::Text;
use crate::version::Version;

/// RabbitMQ's versions that SHADOW is tested with.
const BROKER: Version = Version(4, 0, 0);

pub fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![crd(facts), rights(facts)];
    if facts.all && facts.nodes.len() < 2 {
        let question = Question { check: "nodes", subject: super::CLUSTER };
        findings.push(question.failure("there is no second node to move a pod to", "add a node"));
    }
    findings.extend(facts.broker.as_ref().map(broker));
    findings.extend(facts.registry.as_ref().map(registry));
    findings
}

fn crd(facts: &Facts) -> Finding {
    let question = Question { check: "crd", subject: super::CLUSTER };
    let remedy = "apply config/crd/bases/migration.ms2m.io_statefulmigrations.yaml";
    super::answer(question, facts.crd.clone(), |crd| match crd {
        Crd::Served => question.ok("migration.ms2m.io/v1alpha1 is served"),
        Crd::Absent => question.failure("StatefulMigration is not defined in the cluster", remedy),
        Crd::OtherVersion => question
            .failure("StatefulMigration is defined, but v1alpha1 of it is not served", remedy),
    })
}

fn rights(facts: &Facts) -> Finding {
    let question = Question { check: "operator-rights", subject: super::CLUSTER };
    super::answer(question, facts.rights.clone(), |rights| {
        let denied: Vec<&Right> = rights.iter().filter(|right| !right.allowed).collect();
        let secrets = |right: &&Right| right.resource == "secrets";
        if denied.is_empty() {
            return question.ok(format!("the operator has all its {} rights", rights.len()));
        }
        if denied.iter().all(secrets) {
            return question.warning(
                "the operator may not read Secrets in all namespaces",
                "fine if a Role lets it `get` those of the broker and the registry in the workloads' \
                 namespaces; else apply config/rbac/role.yaml",
            );
        }
        question.failure(
            format!("the operator may not {}", listed(&denied)),
            "apply config/rbac/role.yaml",
        )
    })
}

/// `create, delete jobs.batch; get nodes/proxy`
fn listed(rights: &[&Right]) -> String {
    let mut verbs: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for right in rights {
        let dot = if right.group.is_empty() { "" } else { "." };
        let resource = format!("{}{dot}{}", right.resource, right.group);
        verbs.entry(resource).or_default().push(&right.verb);
    }
    let parts = verbs.iter().map(|(resource, verbs)| format!("{} {resource}", verbs.join(", ")));
    parts.collect::<Vec<_>>().join("; ")
}

fn broker(broker: &Broker) -> Finding {
    let question = Question { check: "broker", subject: super::CLUSTER };
    match &broker.answers {
        Ok(survey) => survey_of(question, survey, broker.queue.as_deref()),
        Err(why) => question.failure(
            why.to_string(),
            "correct the URL, the credentials or their rights; doctor asks from where it runs, which \
             must reach the broker as the operator does",
        ),
    }
}

fn survey_of(question: Question<'_>, survey: &Survey, queue: Option<&str>) -> Finding {
    if let Some(why) = &survey.lock {
        return question.failure(
            format!("no lock can be taken at the broker: {why}"),
            "let its user configure, write and read queues and exchanges named ms2m.*",
        );
    }
    if let Some(alarm) = survey.alarms.first() {
        return question.failure(
            format!("the broker has an alarm and takes no messages: {alarm}"),
            "free its memory or disk",
        );
    }
    if let Some(queue) = queue.filter(|_| !survey.queue_exists) {
        return question.failure(
            format!("the broker has no queue {queue:?} in this vhost"),
            "correct the queue's name or the vhost at the URL's end",
        );
    }
    let version = &survey.version;
    if survey.statistics_disabled {
        return question.warning(
            format!(
                "RabbitMQ {version} keeps no statistics (disable_stats): not every queue can \
                 be proved empty"
            ),
            "set management.disable_stats = false at the broker",
        );
    }
    match Version::find(version.as_str()) {
        Some(version) if version >= BROKER => {
            question.ok(format!("RabbitMQ {version} and its management API can be used"))
        }
        Some(version) => question.warning(
            format!("RabbitMQ {version} is older than SHADOW is tested with"),
            "use RabbitMQ 4",
        ),
        None => question
            .unknown(&Text::from(format!("the broker's version {version} is not understood"))),
    }
}

fn registry(registry: &Registry) -> Finding {
    let question = Question { check: "registry", subject: super::CLUSTER };
    match &registry.takes {
        Ok(()) => question.ok(format!("{} takes images", registry.name)),
        Err(why) => question.failure(
            why.to_string(),
            "correct its name or the credentials (--registry-auth); doctor asks from where it runs",
        ),
    }
}

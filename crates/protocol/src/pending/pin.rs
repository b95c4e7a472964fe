//! Whether the Deployment of the pod is pinned to the target node at the switch: where that would
//! restart anybody it is not, and an event says why (`docs/adr/0004-pinned-by-a-replica-set.md`).

use super::{Checked, unknown};
use crate::facts::Pin;
use crate::observation::{Owner, Pod, Preflight, Rollout};
use crate::spec::Spec;

pub(super) fn pin(spec: &Spec, pod: &Pod, preflight: &Preflight) -> Checked<Pin> {
    let asked = match spec.pin {
        Some(false) => return Ok(Pin::No),
        Some(true) => true,
        None => false,
    };
    let Owner::Deployment { deployment, .. } = &pod.owner else {
        let name = &spec.source_pod;
        let why = format!(
            "pinToTargetNode is for pods of Deployments, which pod {name} is not: it stays on the \
             target node by itself; leave pinToTargetNode out"
        );
        return Ok(if asked { Pin::Skipped { why, asked } } else { Pin::No });
    };
    let Some(rollout) = preflight.rollout else {
        return unknown(format!("Deployment {deployment} to be read"));
    };
    Ok(match obstacle(deployment, rollout) {
        Some(why) => Pin::Skipped { why, asked },
        None => Pin::Yes,
    })
}

/// Why the template of a Deployment can't be changed now without a restart that nobody wants.
pub fn obstacle(deployment: &str, rollout: Rollout) -> Option<String> {
    let Rollout { replicas, paused, complete } = rollout;
    let why = if replicas != 1 {
        format!("it has {replicas} replicas, and a change of its template would restart the others")
    } else if paused {
        "it is paused, and what it rolls out next is its user's to say".to_owned()
    } else if !complete {
        "a rollout is in progress, which a change of its template would begin anew".to_owned()
    } else {
        return None;
    };
    Some(not_pinned(deployment, &why))
}

/// The sentence for a Deployment that is left as it is.
pub fn not_pinned(deployment: &str, why: &str) -> String {
    format!(
        "Deployment {deployment} is not pinned to the target node: {why}; the pod moves all the same, \
         and the template stays as it is"
    )
}

//! What a migration without a queue must be like: one copy at a time, because nothing would bring a
//! second one up to date with the first.

use super::{Checked, no};
use crate::observation::{Owner, Pod};
use crate::spec::{IdentitySwap, Spec, Strategy};

const NAME_IT: &str = "name the queue that the pod consumes in messageQueueConfig";

pub(super) fn alone_allowed(spec: &Spec, pod: &Pod) -> Checked<()> {
    let refuse = |why: String| no("QueueMissing", format!("{why}, or {NAME_IT}"));
    if let Some(mode) = spec.replay_mode {
        return refuse(format!(
            "replayMode {mode:?} says how what waits in a queue is handed over, and without \
             messageQueueConfig there is no queue; leave replayMode out"
        ));
    }
    let name = &spec.source_pod;
    if spec.strategy == Some(Strategy::ShadowPod) || spec.identity_swap != IdentitySwap::None {
        return refuse(format!(
            "strategy ShadowPod runs source pod {name} beside its copy, and without \
             messageQueueConfig nothing brings the copy up to date with it; use strategy Sequential \
             for a StatefulSet's pod"
        ));
    }
    if !matches!(pod.owner, Owner::StatefulSet(_)) {
        return refuse(format!(
            "source pod {name} is no StatefulSet's, so that it would run beside its copy, and without \
             messageQueueConfig nothing brings the copy up to date with it; run it in a StatefulSet"
        ));
    }
    Ok(())
}

//! Strategy Sequential: the source makes room, and the owner's next pod of its name is the restored
//! one. Once the source is gone, checkpoint and `Q` are the truth until the copy runs: what fails is
//! the attempt, never the migration (`docs/handoff.md`, "When there is no source").

use crate::decide::Next;
use crate::hop;
use crate::observation::{Observation, PrePull};
use crate::phase::{
    Attempt, Commit, Failure, Hop, Image, Incarnation, Phase, Plan, RestoreStep, SwitchStep, Taken,
};
use crate::spec::Settings;
use crate::switch::restore;
use crate::time::Time;

/// Wake-up in milliseconds while watched things are waited for.
const WATCHED: u64 = 1_000;

/// What is known when the image is in place.
pub(crate) struct Place<'a> {
    pub plan: &'a Plan,
    pub taken: &'a Taken,
    pub image: &'a Image,
}

impl Place<'_> {
    pub(crate) fn to(&self, step: RestoreStep) -> Next {
        Next::go(Phase::Restoring {
            plan: self.plan.clone(),
            taken: self.taken.clone(),
            image: self.image.clone(),
            step,
        })
    }
}

pub(crate) fn step(
    place: &Place,
    step: RestoreStep,
    settings: &Settings,
    seen: &Observation,
    since: Time,
    now: Time,
) -> Next {
    let plan = place.plan;
    match step {
        RestoreStep::Pull => pulled(place, seen),
        RestoreStep::MakeRoom => hop::vacated(place, seen),
        // The copy has not run yet: checkpoint and `Q` are the truth, as if it had been vacated.
        RestoreStep::Prepare(Attempt { commit: None, .. })
        | RestoreStep::Admit(Attempt { commit: None, .. })
        | RestoreStep::Retry(Attempt { commit: None, .. })
            if hop::bereaved(plan, seen) && !has_run(plan, seen) =>
        {
            place.to(RestoreStep::Vacate)
        }
        RestoreStep::Order | RestoreStep::Beside | RestoreStep::Vacate => {
            match Commit::proved(plan, seen, now) {
                Some(commit) => {
                    let commit = Some(commit);
                    place.to(RestoreStep::Prepare(Attempt { commit, failed: 0 }))
                }
                None => Next::Wait(WATCHED, format!("source pod {} to be gone", plan.source_pod)),
            }
        }
        RestoreStep::Prepare(attempt) => place.to(RestoreStep::Admit(attempt)),
        RestoreStep::Admit(attempt) => {
            let overdue = now.since(since) > settings.deadlines.restore;
            admitted(place, attempt, overdue, seen, now)
        }
        RestoreStep::Retry(attempt) if seen.target.is_none() => {
            let failed = attempt.failed.saturating_add(1);
            place.to(RestoreStep::Prepare(Attempt { failed, ..attempt }))
        }
        RestoreStep::Retry(_) => {
            Next::Wait(WATCHED, format!("pod {} to be gone for another attempt", plan.target_pod))
        }
    }
}

/// Nobody makes room before the checkpoint is where it will be restored.
fn pulled(place: &Place, seen: &Observation) -> Next {
    let plan = place.plan;
    let next = match &plan.hop {
        // Nobody has the state but the checkpoint.
        _ if hop::bereaved(plan, seen) => return place.to(RestoreStep::Vacate),
        Hop::Second(base) => hop::room(base),
        Hop::Only | Hop::First { .. } => RestoreStep::Vacate,
    };
    let (node, image) = (&plan.target_node, &place.image.reference);
    match &seen.pulled {
        Some(PrePull::Done) => place.to(next),
        Some(PrePull::Failed(why)) => Next::Fail(Failure::new(
            "CheckpointUnavailable",
            format!(
                "node {node} can't pull the checkpoint {image}: {why}; its runtime must reach the \
                 registry, and the pod's imagePullSecrets must open it"
            ),
        )),
        Some(PrePull::Running) | None => {
            Next::Wait(WATCHED, format!("node {node} to pull the checkpoint"))
        }
    }
}

/// A copy that ran, however briefly, may have taken messages from `Q`: the checkpoint alone is not
/// the truth any more and is never restored again. What follows is its owner's business.
fn admitted(place: &Place, attempt: Attempt, overdue: bool, seen: &Observation, now: Time) -> Next {
    let Attempt { commit, .. } = attempt;
    let plan = &Plan { target_node: attempt.node(place.plan).to_owned(), ..place.plan.clone() };
    let (taken, image) = (place.taken, place.image);
    // It may have come, run and gone unseen. Where there is another one that has the state, that one
    // goes on.
    let unsure = |why: &str| match commit {
        Some(_) => place.to(RestoreStep::Retry(attempt)),
        None => Next::Fail(Failure::new("TargetLost", format!("pod {} {why}", plan.target_pod))),
    };
    let Some(target) = &seen.target else {
        if overdue {
            return unsure("did not come back");
        }
        return Next::Wait(WATCHED, format!("pod {} to come back", plan.target_pod));
    };
    let status = target.statuses.get(&plan.container);
    let started = has_run(plan, seen);
    match (status, commit) {
        (Some(_), None) if started && target.ended => Next::Fail(Failure::new(
            "TargetLost",
            format!("target pod {} has ended", plan.target_pod),
        )),
        (Some(status), Some(commit)) if started && target.ended => Next::go(Phase::Finalizing {
            plan: plan.clone(),
            taken: taken.clone(),
            image: image.clone(),
            target: Incarnation {
                uid: target.uid.clone(),
                container_id: status.id.clone(),
                feed_per_second: 0,
            },
            step: SwitchStep::Retire(commit),
        }),
        _ if !started && target.ended => place.to(RestoreStep::Retry(attempt)),
        _ if !started && overdue => unsure("did not start"),
        _ => restore(plan, taken, image, commit, seen, now),
    }
}

/// The copy runs or has run.
fn has_run(plan: &Plan, seen: &Observation) -> bool {
    let target = seen.target.as_ref();
    let status = target.and_then(|target| target.statuses.get(&plan.container));
    status.is_some_and(|found| found.started || found.running)
}
